import dataclasses

import pytest
import torch
from batches import DENOISERS, K, Spy, random_batch, row_of, seeded
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from mmalign.adapters import DiffusionAdapter
from mmalign.adapters.noising import draw, uniform_timestep
from mmalign.types import GroupScores

PAIR = ("chosen", "rejected")


def adapter_for(prediction_type="epsilon", **keywords):
    return DiffusionAdapter(DDPMScheduler(prediction_type=prediction_type), **keywords)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noised_samples_and_targets_are_those_of_the_scheduler(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    clean, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=seeded())
    timestep = torch.tensor([0, 500, 999])
    noisy, target = DiffusionAdapter(scheduler).noise_samples(clean, noise, timestep)
    expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, timestep), "sample": clean}
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timestep), rtol=0, atol=1e-12)
    torch.testing.assert_close(target, expected[prediction_type], rtol=0, atol=1e-12)


def test_v_prediction_target_by_hand():
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    scheduler.alphas_cumprod = torch.full((1000,), 0.36)  # sqrt = .6 and sqrt(1 - .36) = .8
    clean, noise = torch.full((1, 1, 1, 1), 10.0), torch.full((1, 1, 1, 1), 100.0)
    noisy, target = DiffusionAdapter(scheduler).noise_samples(clean, noise, torch.tensor([5]))
    assert noisy.item() == pytest.approx(0.6 * 10 + 0.8 * 100)
    assert target.item() == pytest.approx(0.6 * 100 - 0.8 * 10)


def test_the_score_is_minus_half_the_mean_squared_error():
    batch = random_batch("sd15")
    scores = adapter_for().score(Spy(0.25), None, batch, generator=seeded())
    _, noise = draw(2, (4, 16, 16), seeded(), uniform_timestep(1000), device=torch.device("cpu"), dtype=torch.float32)
    expected = -0.5 * (0.25 - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(scores.chosen_logp, expected)
    torch.testing.assert_close(scores.rejected_logp, expected)
    assert scores["chosen"].ref_logp is None


def test_policy_and_reference_take_one_forward_each_for_all_branches():
    policy, reference = Spy(), Spy()
    adapter_for().score(policy, reference, random_batch("sd15", branches=(*PAIR, "chosen@crop")), generator=seeded())
    assert len(policy.calls) == 1
    adapter_for().score(policy, reference, random_batch("sd15"), generator=seeded())
    assert len(policy.calls) == len(reference.calls) == 2


def test_gradients_flow_through_the_policy_only():
    policy, reference = Spy(0.1), Spy(0.2)
    scores = adapter_for().score(policy, reference, random_batch("sd15"), generator=seeded())
    assert not scores.ref_chosen_logp.requires_grad
    scores.chosen_logratio.sum().backward()
    assert policy.prediction.grad is not None
    assert reference.prediction.grad is None


def test_every_branch_of_a_row_shares_noise_and_timestep():
    unet, batch = DENOISERS["sd15"](), random_batch("sd15")
    twins = dataclasses.replace(batch, latents=dict.fromkeys(PAIR, batch.latents["chosen"]))
    scores = adapter_for().score(unet, None, twins, generator=seeded())
    torch.testing.assert_close(scores.chosen_logp, scores.rejected_logp, rtol=0, atol=1e-6)
    assert scores.timestep.shape == (2,)
    assert scores.timestep[0] != scores.timestep[1]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_generator_decides(kind):
    unet, batch = DENOISERS[kind](), random_batch(kind)
    first, again, other = (adapter_for().score(unet, None, batch, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.chosen_logp, again.chosen_logp)
    assert not torch.equal(first.chosen_logp, other.chosen_logp)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_batch_of_two_equals_two_batches_of_one(kind, dtype, tolerance):
    unet, batch, adapter = DENOISERS[kind]().to(dtype), random_batch(kind, dtype=dtype), adapter_for()
    whole = adapter.score(unet, None, batch, generator=seeded())
    generator = seeded()
    for row in range(2):
        alone = adapter.score(unet, None, row_of(batch, row), generator=generator)
        for branch in PAIR:
            assert whole[branch].logp[row].item() == pytest.approx(alone[branch].logp.item(), abs=tolerance)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_candidates_are_scored_like_plain_branches_of_the_same_row(kind):
    unet, adapter = DENOISERS[kind]().double(), adapter_for()
    batch = random_batch(kind, branches=("candidates",), dtype=torch.float64)
    group = adapter.score(unet, unet, batch, ("candidates",), generator=seeded())["candidates"]
    assert isinstance(group, GroupScores)
    assert group.logp.shape == group.ref_logp.shape == (2, K)
    for place in range(K):
        ids = None if batch.time_ids is None else {"sample": batch.time_ids["candidates"]}
        one = dataclasses.replace(batch, latents={"sample": batch.latents["candidates"][:, place]}, time_ids=ids)
        alone = adapter.score(unet, None, one, ("sample",), generator=seeded())
        torch.testing.assert_close(group.logp[:, place], alone.sample_logp, rtol=0, atol=1e-9)


def test_candidates_may_have_time_ids_of_their_own():
    batch = random_batch("sdxl", branches=("candidates",))
    ids = torch.arange(2 * K * 6.0).reshape(2, K, 6)
    spy = Spy()
    adapter_for().score(spy, None, dataclasses.replace(batch, time_ids={"candidates": ids}), ("candidates",))
    assert torch.equal(spy.calls[0][1]["added_cond_kwargs"]["time_ids"], ids.reshape(-1, 6))


def test_labels_travel_with_the_scores():
    labels = {
        "preference": torch.tensor([1.0, 0.6]),
        "margin": torch.tensor([2.0, 0.1]),
        "labels": torch.rand(2, K),
        "desirable": torch.tensor([True, False]),
        "present": {"rejected": torch.tensor([True, False])},
    }
    scores = adapter_for().score(Spy(), None, dataclasses.replace(random_batch("sd15"), **labels))
    for name, value in labels.items():
        assert getattr(scores, name) is value


def test_turbo_timesteps():
    scores = adapter_for(timesteps="turbo").score(Spy(), None, random_batch("sd15", 32), generator=seeded())
    assert set(scores.timestep.tolist()) == {249, 499, 749, 999}


@pytest.mark.parametrize("timestep", [0, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_ends_of_a_zero_terminal_snr_schedule_are_finite(prediction_type, timestep):
    scheduler = DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    noisy, target = DiffusionAdapter(scheduler).noise_samples(clean, noise, torch.tensor([timestep]))
    assert noisy.isfinite().all()
    assert target.isfinite().all()
    if timestep == 999:
        torch.testing.assert_close(noisy, noise, rtol=0, atol=1e-3)


def test_float64_stays_float64_and_half_is_scored_in_float32():
    assert (
        adapter_for().score(Spy(), None, random_batch("sd15", dtype=torch.float64)).chosen_logp.dtype == torch.float64
    )
    spy = Spy()
    scores = adapter_for().score(spy, None, random_batch("sd15", dtype=torch.bfloat16), generator=seeded())
    assert scores.chosen_logp.dtype == torch.float32
    assert spy.calls[0][0][0].dtype == torch.bfloat16
    exact = adapter_for().score(Spy(), None, random_batch("sd15"), generator=seeded())
    # The prediction is exactly 0 and the target is the noise, which half-precision latents must not round.
    assert torch.equal(scores.chosen_logp, exact.chosen_logp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_micro_conditioning_above_256_is_not_rounded(dtype):
    ids = torch.tensor([[257.0, 513.0, 767.0, 1023.0, 1.0, 511.0]] * 2)
    batch = dataclasses.replace(random_batch("sdxl", dtype=dtype), time_ids=dict.fromkeys(PAIR, ids))
    spy = Spy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapter_for().score(spy, None, batch)
    received = spy.calls[0][1]["added_cond_kwargs"]["time_ids"]
    assert received.dtype == torch.float32
    assert torch.equal(received, ids.repeat(2, 1))


def test_micro_conditioning_of_each_branch_reaches_its_own_samples():
    batch, spy = random_batch("sdxl"), Spy()
    adapter_for().score(spy, None, batch, ("rejected", "chosen"))
    received = spy.calls[0][1]["added_cond_kwargs"]["time_ids"]
    assert torch.equal(received, torch.cat([batch.time_ids["rejected"], batch.time_ids["chosen"]]))


def test_the_scheduler_of_an_sdxl_pipeline_is_accepted():
    scores = DiffusionAdapter(EulerDiscreteScheduler()).score(Spy(), None, random_batch("sd15"))
    assert scores.chosen_logp.isfinite().all()


class SDXLSpy(Spy):
    """A spy that says of itself what an SDXL UNet says."""

    @property
    def config(self):
        return DENOISERS["sdxl"]().config


@pytest.mark.parametrize("missing", [("pooled_embeds",), ("time_ids",), ("pooled_embeds", "time_ids")])
def test_an_sdxl_unet_without_its_conditioning_is_refused_before_the_forward(missing):
    batch = dataclasses.replace(random_batch("sdxl"), **dict.fromkeys(missing))
    wrapped = torch.nn.Sequential(spy := SDXLSpy())
    with pytest.raises(ValueError, match=f"batch.{missing[0]} is None"):
        adapter_for().score(wrapped, None, batch)
    assert not spy.calls


def test_time_ids_must_cover_every_branch():
    batch = random_batch("sdxl")
    with pytest.raises(ValueError, match=r"no entry for \['rejected'\]"):
        adapter_for().score(Spy(), None, dataclasses.replace(batch, time_ids={"chosen": batch.time_ids["chosen"]}))


def test_micro_conditioning_that_was_rounded_already_is_refused():
    batch = random_batch("sdxl")
    halved = {branch: ids.bfloat16() for branch, ids in batch.time_ids.items()}
    with pytest.raises(ValueError, match="is in half precision, which rounds sizes"):
        adapter_for().score(Spy(), None, dataclasses.replace(batch, time_ids=halved))


@pytest.mark.parametrize("branches", [("chosen", "winner"), ("winner",), ()])
def test_unknown_branches_list_those_of_the_batch(branches):
    with pytest.raises(ValueError, match=r"this batch has \['chosen', 'rejected'\]"):
        adapter_for().score(Spy(), None, random_batch("sd15"), branches)


def test_latents_of_different_shapes_are_refused():
    batch = random_batch("sd15")
    latents = {"chosen": batch.latents["chosen"], "rejected": batch.latents["rejected"][..., :8]}
    with pytest.raises(ValueError, match="must have one shape"):
        adapter_for().score(Spy(), None, dataclasses.replace(batch, latents=latents))


def test_mistakes_in_the_schedule_are_named():
    with pytest.raises(ValueError, match="use FlowAdapter"):
        DiffusionAdapter(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"timesteps='logit_normal'.*\['turbo', 'uniform'\]"):
        adapter_for(timesteps="logit_normal")
    with pytest.raises(ValueError, match="prediction_type='score' of this DDPMScheduler"):
        adapter_for("score")
    half = DDPMScheduler()
    half.alphas_cumprod = half.alphas_cumprod.half()
    with pytest.raises(ValueError, match=r"torch\.float16, too coarse"):
        DiffusionAdapter(half)
