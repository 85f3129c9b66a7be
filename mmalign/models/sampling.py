"""Sampling pictures: one seed per picture, so that a picture does not depend on what else is in its batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.models.encode import PromptEmbeddings
from mmalign.models.prompts import kind_of, text_encoders, text_length
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
    max_sequence_length: int | None = None,
    progress: Callable[[int], None] | None = None,
    negative_prompt: str = "",
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """One picture for each prompt, the noise of picture ``i`` drawn on the CPU from ``seeds[i]``.

    ``prompts`` may be embeddings made beforehand (``Encoder.embeddings``), for a pipeline whose text encoders are gone.
    ``guidance_scale`` is that of classifier-free guidance, and <= 1 means none; Flux models with a guidance embedding
    (FLUX.1-dev) get it as that embedding instead, at one forward per step: 1 is none, 3.5 usual. Models distilled to
    few steps (FLUX.1-schnell, SDXL-Turbo) are made for 0. ``size``: side in pixels, by default the model's own.
    ``max_sequence_length``: tokens of T5, see ``prompts.text_length``. ``progress`` is called with the number of
    pictures finished since the last call. ``negative_prompt`` is what guidance steers away from, the same for every
    picture; without such guidance it is a ``ValueError``. ``on_step`` is called after each denoising step with the
    number of steps that the batch at hand has behind it; what it raises ends the sampling. Latents are decoded in the
    VAE's precision, and the safety checker never runs: bad pictures should be seen, not blacked out.
    """
    count = prompts.text.shape[0] if isinstance(prompts, PromptEmbeddings) else len(prompts)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts: give one seed for each picture")
    _check_negative(pipe, prompts, guidance_scale, negative_prompt)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    length = text_length(pipe, max_sequence_length)
    pipe.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    with _one_device(pipe, denoiser.device, keep_encoders=not isinstance(prompts, PromptEmbeddings)):
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            with _one_precision(pipe, denoiser):
                latents = pipe(
                    **_prompts(pipe, prompts, rows, guidance_scale, length, negative_prompt),
                    **_stepwise(on_step),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
                    num_inference_steps=steps,
                    height=size,
                    width=size,
                    output_type="latent",
                ).images
            pictures += to_pictures(decode_latents(pipe.vae, _as_grid(pipe, latents, size)))
            if progress is not None:
                progress(rows.stop - start)
    return pictures


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """PIL pictures of pixels [n, 3, h, w] in [-1, 1], rounded to 8 bits as the pipelines do."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]


@contextmanager
def _one_device(pipe: Any, device: torch.device, *, keep_encoders: bool) -> Iterator[None]:
    """VAE and text encoders beside the denoiser, or the encoders out of the way, and afterwards back where they were.

    A pipeline takes its device from any of its parts, so none may lie elsewhere while it runs.
    """
    parts = {name: getattr(pipe, name) for name in ("vae", *text_encoders(pipe))}
    devices = {name: part.device for name, part in parts.items()}
    moved = [name for name, where in devices.items() if where != device]
    try:
        for name in moved:
            if name == "vae" or keep_encoders:
                parts[name].to(device)
            else:
                setattr(pipe, name, None)
        yield
    finally:
        for name in moved:
            setattr(pipe, name, parts[name])
            parts[name].to(devices[name])


def _check_negative(pipe: Any, prompts: Sequence[str] | PromptEmbeddings, scale: float, negative: str) -> None:
    if negative == "":
        return
    if isinstance(prompts, PromptEmbeddings):
        raise ValueError("negative_prompt has no effect on prompts that are embedded already; embed it with them")
    if scale <= 1 or not _guidance(pipe, scale)[0]:
        raise ValueError(
            f"negative_prompt {negative!r} has no effect: there is no classifier-free guidance at a scale of {scale:g} "
            f"in {type(pipe).__name__}. Give a scale above 1 (not possible for FLUX.1-dev), or leave it empty"
        )


def _stepwise(on_step: Callable[[int], None] | None) -> dict[str, Any]:
    """The pipeline's argument for calling ``on_step`` with the number of steps done."""
    if on_step is None:
        return {}

    def finished(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        on_step(step + 1)
        return tensors

    return {"callback_on_step_end": finished}


def _prompts(
    pipe: Any,
    prompts: Sequence[str] | PromptEmbeddings,
    rows: slice,
    guidance_scale: float,
    length: int | None,
    negative_prompt: str,
) -> dict[str, Any]:
    """The pipeline's arguments for the text of ``rows`` and for guidance."""
    guided, guidance = _guidance(pipe, guidance_scale)
    if not isinstance(prompts, PromptEmbeddings):
        texts = list(prompts[rows])
        # The empty prompt is what every pipeline but Flux takes for the negative one without being told.
        told = guided and (negative_prompt != "" or kind_of(pipe) == "flux")
        negative = {"negative_prompt": [negative_prompt] * len(texts)} if told else {}
        return {"prompt": texts} | negative | guidance | ({} if length is None else {"max_sequence_length": length})
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    text = prompts.text[rows].to(denoiser.device, denoiser.dtype)
    arguments = guidance | {"prompt_embeds": text}
    if guided:
        arguments |= {"negative_prompt_embeds": _repeat(prompts.negative, text)}
    if prompts.pooled is not None and prompts.negative_pooled is not None:
        pooled = prompts.pooled[rows].to(denoiser.device, denoiser.dtype)
        arguments |= {"pooled_prompt_embeds": pooled}
        if guided:
            arguments |= {"negative_pooled_prompt_embeds": _repeat(prompts.negative_pooled, pooled)}
    return arguments


def _guidance(pipe: Any, scale: float) -> tuple[bool, dict[str, float]]:
    """Whether the pipeline is given a negative prompt, and its arguments for a guidance of ``scale``."""
    if kind_of(pipe) != "flux":
        return True, {"guidance_scale": scale}
    if pipe.transformer.config.guidance_embeds:
        return False, {"guidance_scale": scale}
    return scale > 1, {"true_cfg_scale": scale}


def _as_grid(pipe: Any, latents: Tensor, size: int | None) -> Tensor:
    """Latents [n, channels, height, width]; Flux gives tokens, of a square picture."""
    if kind_of(pipe) != "flux":
        return latents
    side = size or pipe.default_sample_size * pipe.vae_scale_factor
    return pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)


def _repeat(row: Tensor, like: Tensor) -> Tensor:
    return row.to(like.device, like.dtype).expand_as(like)


def _one_precision(pipe: Any, denoiser: Any) -> AbstractContextManager[Any]:
    """Autocast where fp32 trained weights meet text encoders of lower precision; nothing to do otherwise."""
    own = {value.dtype for name, value in denoiser.named_parameters() if ".lora_" not in name}
    half = own & {torch.bfloat16, torch.float16}
    if half and torch.float32 in own:  # modules trained in full, in fp32, between layers of lower precision
        return torch.autocast(denoiser.device.type, dtype=half.pop())
    text_encoder = getattr(pipe, "text_encoder", None)
    if text_encoder is None or text_encoder.dtype == denoiser.dtype:
        return nullcontext()
    return torch.autocast(denoiser.device.type, dtype=text_encoder.dtype)
