"""Sampling pictures: one seed per picture, so that a picture does not depend on what else is in its batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.models.encode import PromptEmbeddings
from mmalign.models.vae import decode_latents


@torch.no_grad()
def generate(
    pipe: Any,
    prompts: Sequence[str] | PromptEmbeddings,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    batch_size: int = 4,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """One picture for each prompt, the noise of picture ``i`` drawn on the CPU from ``seeds[i]``.

    ``prompts`` may be embeddings made beforehand (``Encoder.embeddings``), for a pipeline whose text encoders are gone.
    ``guidance_scale`` <= 1 means no guidance. ``size``: side in pixels, by default the model's own. ``progress`` is
    called with the number of pictures finished since the last call. Latents are decoded in the VAE's precision, and the
    safety checker never runs: bad pictures should be seen, not blacked out.
    """
    count = prompts.text.shape[0] if isinstance(prompts, PromptEmbeddings) else len(prompts)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts: give one seed for each picture")
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    device = denoiser.device
    pipe.set_progress_bar_config(disable=True)
    vae_device = pipe.vae.device
    # A pipeline takes its device from any of its parts, so the VAE must not lie elsewhere while it runs.
    pipe.vae.to(device)
    pictures: list[Image.Image] = []
    try:
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            with _one_precision(pipe, denoiser):
                latents = pipe(
                    **_prompt_arguments(prompts, rows, device, denoiser.dtype),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
                    num_inference_steps=steps,
                    guidance_scale=guidance_scale,
                    height=size,
                    width=size,
                    output_type="latent",
                ).images
            pictures += to_pictures(decode_latents(pipe.vae, latents))
            if progress is not None:
                progress(rows.stop - start)
    finally:
        pipe.vae.to(vae_device)
    return pictures


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """PIL pictures of pixels [n, 3, h, w] in [-1, 1], rounded to 8 bits as the pipelines do."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _prompt_arguments(
    prompts: Sequence[str] | PromptEmbeddings, rows: slice, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    if not isinstance(prompts, PromptEmbeddings):
        return {"prompt": list(prompts[rows])}
    text = prompts.text[rows].to(device, dtype)
    arguments = {"prompt_embeds": text, "negative_prompt_embeds": _repeat(prompts.negative, text)}
    if prompts.pooled is not None and prompts.negative_pooled is not None:
        pooled = prompts.pooled[rows].to(device, dtype)
        arguments |= {
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": _repeat(prompts.negative_pooled, pooled),
        }
    return arguments


def _repeat(row: Tensor, like: Tensor) -> Tensor:
    return row.to(like.device, like.dtype).expand_as(like)


def _one_precision(pipe: Any, denoiser: Any) -> AbstractContextManager[Any]:
    """Autocast where fp32 trained weights meet text encoders of lower precision; nothing to do otherwise."""
    text_encoder = getattr(pipe, "text_encoder", None)
    if text_encoder is None or text_encoder.dtype == denoiser.dtype:
        return nullcontext()
    return torch.autocast(denoiser.device.type, dtype=text_encoder.dtype)
