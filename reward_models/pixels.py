"""Published preprocessing: pictures, or tensors in 0..1, to the normalised pixels that an image encoder sees.

A picture is first made upright 8-bit RGB as everywhere in mmalign: EXIF orientation applied, transparency on white, 16
bits scaled. (The published codes drop the alpha channel or crash on it, ignore EXIF and clip 16 bits.) For an RGB
picture every step is the published one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mmalign.data.decoding import refuse_size, upright_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """How pictures become pixels [batch, 3, ``size``, ``size``].

    ``fit``: ``crop`` scales the short side to ``size`` (Pillow's bicubic on 8-bit values, as torchvision's Resize and
    transformers' slow processors do on a picture) and cuts the middle; ``letterbox`` scales the long side of the tensor
    in 0..1 (bicubic, overshoot kept) and pads with black, as HPSv2's ResizeMaxSize (hpsv2/src/open_clip/transform.py,
    Apache-2.0). ``corner``: whose rounding places a cut of odd play, torchvision's ``round((long - size) / 2)`` or
    transformers' ``(long - size) // 2``; they differ by one pixel. ``antialias`` belongs to the letterbox alone:
    torchvision's resize of a tensor did not antialias by default before 0.17 and does since.
    """

    size: int = 224
    fit: Literal["crop", "letterbox"] = "crop"
    corner: Literal["torchvision", "transformers"] = "torchvision"
    antialias: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def pictures(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch 3 size size"]:
        """Normalised float32 pixels of PIL pictures of any mode and size; ValueError names the picture not used."""
        return self.normalise(torch.stack([self._one(number, image) for number, image in enumerate(images)]))

    def tensor(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """The same for pictures that are tensors in 0..1; differentiable.

        The letterbox is the same computation. The crop differs from Pillow's by its rounding to 8 bits (half a level).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"score_tensor takes pictures [batch, 3, height, width], got {list(images.shape)}")
        images = images.float()
        if self.fit == "letterbox":
            return self.normalise(self._letterbox(images))
        height, width = images.shape[-2:]
        new_width, new_height = self._covering(width, height)
        if (new_height, new_width) != (height, width):
            # Columns first, and cut to 0..1 after each direction, because Pillow's 8 bits cannot overshoot either.
            images = _resize(images, height, new_width, antialias=True).clamp(0, 1)
            images = _resize(images, new_height, new_width, antialias=True).clamp(0, 1)
        left, top = self._cut(new_width), self._cut(new_height)
        return self.normalise(images[..., top : top + self.size, left : left + self.size])

    def normalise(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std per channel."""
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _one(self, number: int, image: Image.Image) -> Tensor:
        refuse_size(f"picture {number}", *image.size)
        picture = upright_rgb(image)
        if self.fit == "letterbox":
            return self._letterbox(to_tensor(picture)[None])[0]
        width, height = self._covering(*picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = self._cut(width), self._cut(height)
        return to_tensor(picture.crop((left, top, left + self.size, top + self.size)))

    def _covering(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after scaling the short side to ``size``; the long one is rounded down."""
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size

    def _cut(self, length: int) -> int:
        free = length - self.size
        return free // 2 if self.corner == "transformers" else round(free / 2)

    def _letterbox(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] in about 0..1, black where there is no picture.

        ResizeMaxSize pads only what it has resized, so a picture whose long side is ``size`` already reaches the model
        without its margin, which the model refuses; here it is padded like any other.
        """
        height, width = images.shape[-2:]
        scale = self.size / float(max(height, width))
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
        if scale != 1.0:
            images = _resize(images, new_height, new_width, antialias=self.antialias)
        left, top = (self.size - new_width) // 2, (self.size - new_height) // 2
        margins = (left, self.size - new_width - left, top, self.size - new_height - top)
        return functional.pad(images, margins)


def to_tensor(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """8-bit RGB to float32 in 0..1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255.0


def _resize(images: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    return functional.interpolate(images, (height, width), mode="bicubic", align_corners=False, antialias=antialias)
