"""Pixels for a pair of pictures: one flip and one crop position, drawn once and applied to both sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmalign.data.decoding import decode
from mmalign.types import CHOSEN, REJECTED, PreferencePair


@dataclass(frozen=True)
class Placement:
    """Where the square lies: mirrored or not, and its corner as a share in [0, 1) of the free play; None = middle.

    A share, not a pixel, so that it means the same on pictures of different size.
    """

    flip: bool = False
    top: float | None = None
    left: float | None = None


@dataclass(frozen=True)
class PreparedPair:
    """Both sides as [3, resolution, resolution] float32 in [-1, 1]; ``time_ids``: branch -> [6] float32."""

    chosen: Tensor
    rejected: Tensor
    time_ids: Mapping[str, Tensor]


def prepare_pair(
    pair: PreferencePair,
    *,
    resolution: int,
    crop: Literal["center", "random"] = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> PreparedPair:
    """Decode, resize the shorter side to ``resolution``, flip, cut the square, and scale to [-1, 1].

    Flip and relative crop position are drawn once per pair from ``generator`` (needed for ``crop="random"`` or
    ``flip=True``; three numbers are then always drawn, so switching one on does not change the other). Both sides may
    differ in size: each keeps its own ``time_ids``. Raises UnreadableImage, naming file and row, where a picture
    cannot be decoded, ValueError for a missing generator or an unknown crop.
    """
    placement = draw_placement(crop, flip, generator)
    chosen, chosen_ids = prepare_image(decode(pair.chosen), resolution, placement)
    rejected, rejected_ids = prepare_image(decode(pair.rejected), resolution, placement)
    return PreparedPair(chosen, rejected, {CHOSEN: chosen_ids, REJECTED: rejected_ids})


def draw_placement(crop: Literal["center", "random"], flip: bool, generator: torch.Generator | None) -> Placement:
    """A placement shared by the sides of a pair: flipped with probability one half, position uniform."""
    if crop not in ("center", "random"):
        raise ValueError(f"crop={crop!r}; choose center or random")
    if crop == "center" and not flip:
        return Placement()
    if generator is None:
        raise ValueError("a random crop or flip needs a torch.Generator; pass generator=...")
    coin, top, left = torch.rand(3, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    mirrored = flip and coin < 0.5
    return Placement(mirrored) if crop == "center" else Placement(mirrored, top, left)


def prepare_image(picture: Image.Image, resolution: int, placement: Placement) -> tuple[Tensor, Tensor]:
    """Pixels [3, resolution, resolution] in [-1, 1] and SDXL time ids [6] of one RGB picture.

    ``time_ids`` = (original height, original width, crop top, crop left, target height, target width) as in diffusers
    train_text_to_image_sdxl.py: the original size is that before resizing, the crop corner is counted in the resized
    picture and after the flip (flip first, then crop, since huggingface/diffusers#6547), and sizes round as
    torchvision's Resize and CenterCrop do. Lanczos is that script's default; Pillow's version widens its window when
    scaling down, so large pictures do not alias. float32, because bfloat16 rounds integers above 256.
    """
    width, height = picture.size
    short = min(width, height)
    resized = (resolution * width // short, resolution * height // short)
    scaled = picture if resized == picture.size else picture.resize(resized, Image.Resampling.LANCZOS)
    if placement.flip:
        scaled = ImageOps.mirror(scaled)
    left = _corner(resized[0] - resolution, placement.left)
    top = _corner(resized[1] - resolution, placement.top)
    square = scaled.crop((left, top, left + resolution, top + resolution))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1.0
    time_ids = torch.tensor([height, width, top, left, resolution, resolution], dtype=torch.float32)
    return pixels.contiguous(), time_ids


def _corner(free: int, share: float | None) -> int:
    """A pixel in 0..free: the middle as torchvision's CenterCrop rounds it, else each pixel equally likely."""
    return round(free / 2) if share is None else int(share * (free + 1))
