"""From a picture to numbers and back, without a value that wraps."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def unit(image: Image.Image) -> Tensor:
    """[3, height, width] in fp64, 0 to 1. ValueError for a picture that is not RGB."""
    if image.mode != "RGB":
        raise ValueError(f"a picture of mode {image.mode} cannot be corrupted; convert it to RGB (mmalign.data.decode)")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


def picture(values: Tensor) -> Image.Image:
    """The RGB picture of [3, height, width] values, clamped to 0..1 and rounded: 1.1 is white, and does not wrap."""
    whole = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(whole.permute(1, 2, 0).contiguous().numpy())


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number, evenly between ``low`` and ``high``."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def integer(generator: torch.Generator, high: int) -> int:
    """One of 0 .. ``high`` - 1."""
    return int(torch.randint(high, (), generator=generator))


def within(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """ValueError unless ``low`` <= ``value`` <= ``high`` (``above``: ``low`` itself excluded)."""
    if isinstance(value, bool) or not (low <= value <= high) or (above and value == low):
        raise ValueError(f"{name}={value!r} must lie between {low:g} and {high:g}{', the lower end excluded' * above}")
