"""Prompts and pictures to what a denoiser is trained on, exactly as the pipeline itself encodes them."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.models.loading import Components
from mmalign.models.names import Kind
from mmalign.models.vae import RowGenerators, draw, latent_moments

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts as a pipeline takes them: ``text`` [n, tokens, width], ``pooled`` [n, width] for SDXL and SD3.

    ``negative`` and ``negative_pooled`` hold one row, the pipeline's unconditional text, for guidance.
    """

    text: Tensor
    pooled: Tensor | None
    negative: Tensor
    negative_pooled: Tensor | None


class Encoder:
    """Frozen text encoders and VAE of ``components``, moved to ``device``; text leaves in ``dtype``, latents in fp32.

    :meth:`release` frees them once everything is cached.
    """

    def __init__(
        self, components: Components, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self._pipe = components.pipe
        self._kind: Kind = components.kind
        self._dtype = dtype
        self._device = torch.device(device)
        for name in (*_text_encoders(self._pipe), "vae"):
            getattr(self._pipe, name).to(self._device)

    def text(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings [n, tokens, width], and pooled ones [n, width] for SDXL and SD3. Repeated prompts cost nothing.

        The empty prompt (caption dropout) gets what the pipeline uses as its unconditional text in guidance, which is
        all zeros for SDXL (``force_zeros_for_empty_prompt``) and the encoded empty string elsewhere.
        """
        if not _text_encoders(self._pipe):
            raise ValueError("the text encoders were released; encode every prompt before Encoder.release()")
        unique = list(dict.fromkeys(prompts))
        rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=self._device)
        text, pooled = _pipeline_text(self._pipe, self._kind, unique, self._device)
        if "" in unique:
            negative, negative_pooled = _pipeline_text(self._pipe, self._kind, [""], self._device, unconditional=True)
            text[unique.index("")] = negative[0]
            if pooled is not None and negative_pooled is not None:
                pooled[unique.index("")] = negative_pooled[0]
        text = text.to(self._dtype)[rows]
        return text, None if pooled is None else pooled.to(self._dtype)[rows]

    def embeddings(self, prompts: list[str]) -> PromptEmbeddings:
        """What :func:`mmalign.models.generate` needs of ``prompts``, so that it can sample after :meth:`release`."""
        text, pooled = self.text(prompts)
        negative, negative_pooled = self.text([""])
        return PromptEmbeddings(text, pooled, negative, negative_pooled)

    def moments(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, fp32; ``mean + std * noise`` is a training latent."""
        return latent_moments(self._pipe.vae, pixels)

    def images(self, pixels: Float[Tensor, "batch 3 height width"], generator: RowGenerators | None = None) -> Tensor:
        """Scaled latents, fp32, of pixels in [-1, 1]: drawn with one generator per row, or the mode without one."""
        mean, std = self.moments(pixels)
        return mean if generator is None else draw(mean, std, generator)

    def release(self) -> None:
        """Drop the text encoders, move the VAE to the CPU, and give the memory back."""
        for name in _text_encoders(self._pipe):
            setattr(self._pipe, name, None)
        self._pipe.vae.to("cpu")
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _text_encoders(pipe: Any) -> list[str]:
    return [name for name in _TEXT_ENCODERS if getattr(pipe, name, None) is not None]


@torch.no_grad()
def _pipeline_text(
    pipe: Any, kind: Kind, prompts: list[str], device: torch.device, *, unconditional: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What ``pipe.encode_prompt`` makes of ``prompts``, or of their unconditional counterpart: text and pooled text."""
    shared = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": unconditional}
    if kind == "sd":
        text, negative = pipe.encode_prompt(prompts, **shared)
        return (negative if unconditional else text), None
    more = {"prompt_2": None, "prompt_3": None} if kind == "sd3" else {"prompt_2": None}
    text, negative, pooled, negative_pooled = pipe.encode_prompt(prompts, **more, **shared)
    return (negative, negative_pooled) if unconditional else (text, pooled)
