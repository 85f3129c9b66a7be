"""Encoding equals what the pipelines themselves do with prompts and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from tiny_models import PICTURE, tiny_sd3, tiny_sd15, tiny_sdxl, tiny_vae

from mmalign.models import Components, Encoder, generate, load_components
from mmalign.models.vae import decode_latents, draw, latent_moments

CPU = torch.device("cpu")
BUILDERS = {"sd15": tiny_sd15, "sdxl": tiny_sdxl, "sd3": tiny_sd3}


@pytest.fixture(params=BUILDERS)
def components(request: pytest.FixtureRequest, tmp_path: Path) -> Components:
    BUILDERS[request.param](tmp_path)
    return load_components(str(tmp_path))


def pixels(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, PICTURE, PICTURE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def own_encoding(components: Components, prompts: list[str]) -> tuple[torch.Tensor, ...]:
    """(text, negative[, pooled, negative pooled]) as the pipeline makes them inside its own call."""
    if components.kind == "sd":
        return components.pipe.encode_prompt(prompts, CPU, 1, True)
    keywords = {"prompt_2": None} | ({"prompt_3": None} if components.kind == "sd3" else {})
    return components.pipe.encode_prompt(prompts, device=CPU, do_classifier_free_guidance=True, **keywords)


def test_text_is_the_pipelines_own(components: Components) -> None:
    prompts = ["a red circle", "two blue squares", "a red circle"]
    text, pooled = Encoder(components).text(prompts)
    expected = own_encoding(components, prompts)
    torch.testing.assert_close(text, expected[0])
    assert torch.equal(text[0], text[2])
    assert (pooled is None) == (components.kind == "sd")
    if pooled is not None:
        torch.testing.assert_close(pooled, expected[2])


def test_the_empty_prompt_is_the_unconditional_text(components: Components) -> None:
    text, pooled = Encoder(components).text(["a red circle", ""])
    expected = own_encoding(components, ["x"])
    torch.testing.assert_close(text[1], expected[1][0])
    if pooled is not None:
        torch.testing.assert_close(pooled[1], expected[3][0])
    assert bool((text[1] == 0).all()) == (components.kind == "sdxl")


def test_repeated_prompts_are_encoded_once(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    own: Callable[..., Any] = components.pipe.encode_prompt

    def spy(prompts: list[str], *rest: Any, **more: Any) -> Any:
        seen.append(prompts)
        return own(prompts, *rest, **more)

    monkeypatch.setattr(components.pipe, "encode_prompt", spy)
    Encoder(components).text(["a", "b", "a", "a"])
    assert seen == [["a", "b"]]


def test_text_dtype(components: Components) -> None:
    text, _ = Encoder(components, dtype=torch.bfloat16).text(["a"])
    assert text.dtype == torch.bfloat16


def test_images_are_encoded_as_by_the_editing_pipeline(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    components = load_components(str(tmp_path))
    parts = {key: value for key, value in components.pipe.components.items() if key != "image_encoder"}
    generators = [[torch.Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    own = StableDiffusionXLImg2ImgPipeline(**parts).prepare_latents(
        pixels(), None, 2, 1, torch.float32, CPU, generators[0], add_noise=False
    )
    torch.testing.assert_close(Encoder(components).images(pixels(), generators[1]), own)


def test_scaling_and_shift() -> None:
    vae = tiny_vae(scaling_factor=1.5305, shift_factor=0.0609)
    mean, std = latent_moments(vae, pixels())
    with torch.no_grad():
        posterior = vae.encode(pixels()).latent_dist
    torch.testing.assert_close(mean, (posterior.mean - 0.0609) * 1.5305)
    torch.testing.assert_close(std, posterior.std * 1.5305)


def test_channel_statistics_where_the_configuration_has_them() -> None:
    means, stds = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    vae = tiny_vae(scaling_factor=0.5, latents_mean=means, latents_std=stds)  # type: ignore[arg-type]
    mean, std = latent_moments(vae, pixels())
    with torch.no_grad():
        posterior = vae.encode(pixels()).latent_dist
    shape = (1, 4, 1, 1)
    torch.testing.assert_close(
        mean, (posterior.mean - torch.tensor(means).view(shape)) * 0.5 / torch.tensor(stds).view(shape)
    )
    torch.testing.assert_close(std, posterior.std * 0.5 / torch.tensor(stds).view(shape))
    with torch.no_grad():
        torch.testing.assert_close(decode_latents(vae, mean), vae.decode(posterior.mean).sample)


def test_draws_do_not_depend_on_the_split_into_batches() -> None:
    mean, std = latent_moments(tiny_vae(), pixels(4))

    def rows() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    whole = draw(mean, std, rows())
    parts = [draw(mean[i : i + 1], std[i : i + 1], rows()[i : i + 1]) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    shared, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    halves = [draw(mean[:2], std[:2], shared), draw(mean[2:], std[2:], shared)]
    assert torch.equal(draw(mean, std, again), torch.cat(halves))


def test_one_generator_per_row() -> None:
    mean, std = latent_moments(tiny_vae(), pixels(2))
    with pytest.raises(ValueError, match="3 generators for 2 rows"):
        draw(mean, std, [torch.Generator()] * 3)


def test_without_a_generator_the_mode(components: Components) -> None:
    encoder = Encoder(components)
    assert torch.equal(encoder.images(pixels()), encoder.moments(pixels())[0])


def test_latents_are_single_precision_whatever_the_model(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    components = load_components(str(tmp_path), dtype="float16")
    assert Encoder(components, dtype=torch.float16).images(pixels().half()).dtype == torch.float32


def test_after_release_text_is_refused_and_sampling_goes_on(components: Components) -> None:
    encoder = Encoder(components)
    prompts = ["a red circle", "two blue squares"]
    before = generate(components.pipe, prompts, [1, 2], steps=2, guidance_scale=5.0)
    embeddings = encoder.embeddings(prompts)
    encoder.release()
    assert components.pipe.text_encoder is None
    with pytest.raises(ValueError, match="released"):
        encoder.text(["a"])
    after = generate(components.pipe, embeddings, [1, 2], steps=2, guidance_scale=5.0)
    assert [picture.tobytes() for picture in after] == [picture.tobytes() for picture in before]
