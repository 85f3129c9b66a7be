"""Wrong colours: hues turned, brightness, contrast and saturation changed."""

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mmalign.corruptions.pixels import uniform, unit, within


def colour(
    image: Image.Image,
    generator: torch.Generator,
    *,
    hue: float = 0.5,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Image.Image:
    """Hue turned by ``hue`` of a full turn at most and at least half of that, either way; the rest by factors.

    ``brightness``, ``contrast`` and ``saturation`` x draw a factor evenly from 1 - x to 1 + x, as torchvision's
    ``ColorJitter``; at 0 they draw and change nothing. Hue 0.5 makes red things between green and violet: a description
    that names colours is then wrong, one that names none is not.
    """
    within("hue", hue, 0, 0.5)
    unit(image)
    changed = image
    if hue:
        turn = uniform(generator, hue / 2, hue) * (1 if uniform(generator, 0, 1) < 0.5 else -1)
        bands = np.array(changed.convert("HSV"))
        bands[..., 0] = (bands[..., 0].astype(np.int64) + round(turn * 256)) % 256
        changed = Image.fromarray(bands, "HSV").convert("RGB")
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    tools = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name, most in factors.items():
        within(name, most, 0, 1)
        if most:
            changed = tools[name](changed).enhance(uniform(generator, 1 - most, 1 + most))
    if not hue and not any(factors.values()):
        raise ValueError("colour: hue, brightness, contrast and saturation are all 0, so nothing would change")
    return changed
