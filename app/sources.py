"""Where pictures come from: models that are sampled now (``live``) or a gallery made before (``gallery``)."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image, PngImagePlugin

MOST_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Request:
    """What a visitor wants to see; ``negative_prompt``, steps and guidance mean nothing in a gallery."""

    prompt: str
    seeds: tuple[int, ...]
    negative_prompt: str = ""
    steps: int = 30
    guidance: float = 5.0
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Picture:
    """A picture without any metadata, and what made it. ``png`` are its lossless bytes, which ``sha256`` names."""

    image: Image.Image
    model: str
    prompt: str
    seed: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def png(self) -> bytes:
        """Lossless, and without a word on where it comes from."""
        return bare_png(self.image)

    @property
    def sha256(self) -> str:
        """Of :attr:`png`."""
        return hashlib.sha256(self.png).hexdigest()

    def signed_png(self) -> bytes:
        """The PNG with its provenance as JSON in the text chunk ``mmalign``. Only after a reveal."""
        import json

        chunk = PngImagePlugin.PngInfo()
        about = {"model": self.model, "prompt": self.prompt, "seed": self.seed, **self.provenance}
        chunk.add_itxt("mmalign", json.dumps(about, ensure_ascii=False, default=str))
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", pnginfo=chunk)
        return buffer.getvalue()


OnStep = Callable[[int, int], None]
"""Called with (finished, all) denoising steps; what it raises ends the sampling."""


class Source(Protocol):
    """``live``: whether prompts are free and settings matter. A source gives the same picture for the same request."""

    live: bool
    title: str
    notice: str

    @property
    def cheap(self) -> bool:
        """Whether pictures may be made without being asked for, as soon as the page opens."""
        ...

    @property
    def names(self) -> list[str]:
        """The models, in their order."""
        ...

    def warm(self) -> None:
        """Start loading what is needed first; returns at once."""
        ...

    def prompts(self) -> list[str]:
        """Examples, and what the arena asks about."""
        ...

    def seeds(self, prompt: str) -> list[int]:
        """Seeds there are for ``prompt``; empty where any will do."""
        ...

    def weights(self, model: str, request: Request) -> Mapping[str, Any]:
        """What tells ``model`` from others of its name, as ``mmalign.arena.Side`` calls it; nothing is loaded."""
        ...

    def effective(self, model: str, request: Request) -> Request:
        """``request`` as it reaches ``model``: with what is fixed for it."""
        ...

    def sample(self, model: str, request: Request, on_step: OnStep | None = None) -> list[Picture]:
        """A picture per seed of ``request``."""
        ...


def bare(image: Image.Image) -> Image.Image:
    """The pixels alone, RGB on white: no EXIF, no text chunks, no colour profile, no transparency."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    rgb = image.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def bare_png(image: Image.Image) -> bytes:
    """Lossless bytes of :func:`bare`."""
    buffer = io.BytesIO()
    bare(image).save(buffer, format="PNG")
    return buffer.getvalue()


def unique(values: Sequence[str]) -> list[str]:
    """``values`` without repeats, in their order."""
    return list(dict.fromkeys(values))
