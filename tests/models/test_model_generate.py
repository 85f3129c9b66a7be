"""Sampling: the same seed gives the same picture, whatever else is in the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler
from PIL import Image
from tiny_models import PICTURE, tiny_flux, tiny_sd3, tiny_sd15, tiny_sdxl

from mmalign.models import Encoder, generate, load_components, make_trainable

PROMPTS = ["a red circle", "two blue squares", "green"]
SEEDS = [7, 8, 9]


def largest_difference(first: list[Image.Image], second: list[Image.Image]) -> int:
    """In 8-bit levels. One level is the rounding of convolutions that pick another kernel for another batch size."""
    pairs = zip(first, second, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)


def tiny_schnell(folder: Path) -> Any:
    return tiny_flux(folder, guidance_embeds=False, dynamic_shifting=False)


@pytest.fixture(params=[tiny_sd15, tiny_sdxl, tiny_sd3, tiny_flux, tiny_schnell])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    request.param(tmp_path)
    return str(tmp_path)


def test_pictures_equal_the_pipelines_own(folder: str) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    flux = type(pipe).__name__ == "FluxPipeline"
    size = PICTURE if flux else None  # Flux has 1024 pixels as its own size, whatever the model
    mine = generate(load_components(folder).pipe, PROMPTS[:1], SEEDS[:1], steps=3, guidance_scale=5.0, size=size)
    guidance: dict[str, Any] = {"guidance_scale": 5.0}
    if flux and not pipe.transformer.config.guidance_embeds:
        guidance = {"true_cfg_scale": 5.0, "negative_prompt": ""}
    generator = torch.Generator().manual_seed(SEEDS[0])
    own = pipe(PROMPTS[0], num_inference_steps=3, generator=generator, height=size, width=size, **guidance)
    assert mine[0].size == (PICTURE, PICTURE)
    assert largest_difference(mine, own.images) == 0


def test_batch_size_does_not_matter(folder: str) -> None:
    pipe = load_components(folder).pipe
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 5.0, "size": PICTURE}
    one_by_one = generate(pipe, PROMPTS, SEEDS, batch_size=1, **settings)
    together = generate(pipe, PROMPTS, SEEDS, batch_size=3, **settings)
    assert largest_difference(one_by_one, together) <= 1
    assert largest_difference(one_by_one, generate(pipe, PROMPTS, [1, 2, 3], **settings)) > 1


def test_samplers_that_draw_noise_at_each_step_are_seeded_per_picture(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    pipe = load_components(str(tmp_path)).pipe
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    one_by_one = generate(pipe, PROMPTS, SEEDS, steps=3, guidance_scale=0.0, batch_size=1)
    assert largest_difference(one_by_one, generate(pipe, PROMPTS, SEEDS, steps=3, guidance_scale=0.0)) <= 1


def test_progress_and_size(folder: str) -> None:
    finished: list[int] = []
    pictures = generate(
        load_components(folder).pipe,
        PROMPTS,
        SEEDS,
        steps=1,
        guidance_scale=1.0,
        batch_size=2,
        size=16,
        progress=finished.append,
    )
    assert finished == [2, 1]
    assert [picture.size for picture in pictures] == [(16, 16)] * 3


def test_trained_weights_in_single_precision_beside_half_precision_encoders(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    components = load_components(str(tmp_path), dtype="bfloat16")
    make_trainable(components.denoiser, None)
    assert len(generate(components.pipe, PROMPTS, SEEDS, steps=2, guidance_scale=5.0)) == 3


def test_one_seed_for_each_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        generate(tiny_sd15(), PROMPTS, [1, 2], steps=1, guidance_scale=1.0)


def test_flux_gets_guidance_where_it_embeds_one_and_free_guidance_elsewhere(tmp_path: Path) -> None:
    for embeds, forwards in ((True, 2), (False, 4)):
        pipe = tiny_flux(guidance_embeds=embeds)
        seen: list[Any] = []
        pipe.transformer.register_forward_pre_hook(lambda _, __, more, seen=seen: seen.append(more), with_kwargs=True)
        generate(pipe, PROMPTS[:1], [1], steps=2, guidance_scale=3.0, size=PICTURE)
        assert len(seen) == forwards
        assert [more["guidance"] is not None for more in seen] == [embeds] * forwards
        assert all(more["guidance"].item() == 3.0 for more in seen if embeds)
        seen.clear()
        generate(pipe, PROMPTS[:1], [1], steps=2, guidance_scale=0.0, size=PICTURE)
        assert len(seen) == 2


def test_encoders_that_lie_elsewhere_step_aside_for_embeddings(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    components = load_components(str(tmp_path))
    embeddings = Encoder(components).embeddings(PROMPTS)
    settings: dict[str, Any] = {"steps": 1, "guidance_scale": 3.0}
    expected = generate(components.pipe, PROMPTS, SEEDS, **settings)
    pipe = components.pipe
    pipe.text_encoder.to("meta")  # anywhere but beside the denoiser
    made = generate(pipe, embeddings, SEEDS, **settings)
    assert largest_difference(made, expected) == 0
    assert pipe.text_encoder is not None
    assert pipe.text_encoder.device.type == "meta"


def test_a_negative_prompt_is_the_pipelines_own_and_steps_are_told(folder: str) -> None:
    pipe: Any = load_components(folder).pipe
    flux = type(pipe).__name__ == "FluxPipeline"
    settings: dict[str, Any] = {"steps": 3, "size": PICTURE}
    if flux and pipe.transformer.config.guidance_embeds:
        with pytest.raises(ValueError, match="has no effect"):
            generate(pipe, PROMPTS[:1], SEEDS[:1], guidance_scale=5.0, negative_prompt="grey", **settings)
        return
    steps: list[int] = []
    mine = generate(
        pipe, PROMPTS[:1], SEEDS[:1], guidance_scale=5.0, negative_prompt="grey", on_step=steps.append, **settings
    )
    own = DiffusionPipeline.from_pretrained(folder)(
        PROMPTS[0],
        negative_prompt="grey",
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(SEEDS[0]),
        height=PICTURE,
        width=PICTURE,
        **{"true_cfg_scale" if flux else "guidance_scale": 5.0},
    )
    assert steps == [1, 2, 3]
    assert largest_difference(mine, own.images) == 0
    assert largest_difference(mine, generate(pipe, PROMPTS[:1], SEEDS[:1], guidance_scale=5.0, **settings)) > 0
    with pytest.raises(ValueError, match="scale of 1 "):
        generate(pipe, PROMPTS[:1], SEEDS[:1], guidance_scale=1.0, negative_prompt="grey", **settings)


def test_what_a_step_raises_ends_the_sampling(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path)
    seen: list[int] = []

    def stop(step: int) -> None:
        seen.append(step)
        raise InterruptedError("stop")

    with pytest.raises(InterruptedError):
        generate(load_components(str(tmp_path)).pipe, PROMPTS, SEEDS, steps=3, guidance_scale=5.0, on_step=stop)
    assert seen == [1]
