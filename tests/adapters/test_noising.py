import math

import pytest
import torch
from batches import seeded

from mmalign.adapters.noising import (
    draw,
    logit_normal_sigma,
    shift_sigma,
    turbo_timestep,
    uniform_sigma,
    uniform_timestep,
)

SHAPE = (4, 3, 3)
CPU = torch.device("cpu")


def draw_rows(rows, generator, dtype=torch.float32):
    return draw(rows, SHAPE, generator, uniform_timestep(1000), device=CPU, dtype=dtype)


def test_a_batch_of_two_draws_what_two_batches_of_one_draw():
    timesteps, noise = draw_rows(2, seeded())
    generator = seeded()
    for row in range(2):
        timestep, of_row = draw_rows(1, generator)
        assert timestep[0] == timesteps[row]
        assert torch.equal(of_row[0], noise[row])


def test_the_timestep_is_drawn_before_the_noise():
    timesteps, noise = draw_rows(1, seeded(7))
    generator = seeded(7)
    assert timesteps[0] == torch.randint(1000, (), generator=generator)
    assert torch.equal(noise[0], torch.randn(SHAPE, generator=generator))


def test_with_a_generator_per_row_the_split_into_batches_does_not_matter():
    whole = draw_rows(3, [seeded(row) for row in range(3)])
    first, rest = draw_rows(1, [seeded(0)]), draw_rows(2, [seeded(1), seeded(2)])
    for together, head, tail in zip(whole, first, rest, strict=True):
        assert torch.equal(together, torch.cat([head, tail]))


def test_without_a_generator_the_global_state_decides():
    torch.manual_seed(3)
    first = draw_rows(2, None)
    torch.manual_seed(3)
    assert torch.equal(first[1], draw_rows(2, None)[1])
    assert not torch.equal(first[1], draw_rows(2, None)[1])


@pytest.mark.parametrize(
    ("latents", "noise"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_noise_has_at_least_float32(latents, noise):
    assert draw_rows(1, seeded(), latents)[1].dtype == noise


def test_half_precision_latents_see_the_same_noise_as_float32_latents():
    assert torch.equal(draw_rows(1, seeded(), torch.float16)[1], draw_rows(1, seeded())[1])


def test_draws_are_made_where_the_generator_lives_and_then_moved():
    timesteps, noise = draw(2, SHAPE, seeded(), uniform_timestep(9), device=torch.device("meta"), dtype=torch.float32)
    assert timesteps.device.type == noise.device.type == "meta"
    assert noise.shape == (2, *SHAPE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_gives_cuda_latents_the_draws_of_the_cpu():
    on_cpu = draw_rows(2, seeded())
    on_gpu = draw(2, SHAPE, seeded(), uniform_timestep(1000), device=torch.device("cuda"), dtype=torch.float32)
    for here, there in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(here, there.cpu())


def test_too_few_generators_are_refused():
    with pytest.raises(ValueError, match="got 2 generators for 3 rows"):
        draw_rows(3, [seeded(), seeded()])


def test_uniform_timesteps_reach_both_ends_of_the_schedule():
    generator = seeded()
    drawn = {int(uniform_timestep(3)(generator, CPU)) for _ in range(100)}
    assert drawn == {0, 1, 2}


def test_turbo_timesteps_are_the_four_of_sdxl_turbo():
    generator = seeded()
    drawn = {int(turbo_timestep(1000)(generator, CPU)) for _ in range(100)}
    assert drawn == {249, 499, 749, 999}


def quantile(sampler, share, draws=4000):
    generator = seeded()
    return torch.stack([sampler(generator, CPU) for _ in range(draws)]).quantile(share).item()


def test_uniform_sigmas_are_uniform():
    for share in (0.1, 0.5, 0.9):
        assert quantile(uniform_sigma(), share) == pytest.approx(share, abs=0.03)


def test_logit_normal_sigmas_have_the_quantiles_of_a_normal_in_logit_space():
    sampler = logit_normal_sigma(-0.5, 2.0)
    for share, z in ((0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0)):
        assert quantile(sampler, share) == pytest.approx(1 / (1 + math.exp(0.5 - 2.0 * z)), abs=0.03)


def test_shift_warps_towards_noise():
    # by hand: 3 * .5 / (1 + 2 * .5) = .75 and 3 * .2 / (1 + 2 * .2) = 3/7
    warped = shift_sigma(torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64), 3.0)
    assert warped.tolist() == pytest.approx([0.0, 3 / 7, 0.75, 1.0])
    assert shift_sigma(torch.tensor([0.3]), 1.0).item() == pytest.approx(0.3)
