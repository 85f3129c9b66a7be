"""Diffusion noise on pixels: q(x_t | x_0) = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise."""

from functools import cache

import torch
from PIL import Image
from torch import Tensor

from mmalign.corruptions.pixels import picture, unit, within

STEPS = 1000


@cache
def alpha_bars() -> Tensor:
    """alpha_bar_t for t = 0..999 in fp64: cumulative product of 1 - beta, beta_i = sigmoid(x_i) (5e-3 - 1e-5) + 1e-5
    with x_i evenly spaced from -6 to 6. The schedule of VCD (arXiv 2311.16922), POVID (2402.11411), CHiP (2501.16629).
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    return torch.cumprod(1 - betas, dim=0)


def diffusion_noise(image: Image.Image, generator: torch.Generator, *, step: int = 500) -> Image.Image:
    """The picture (0 to 1) at step ``step`` of the schedule above; t = 500 keeps 0.863 of it beside 0.505 of noise.

    Values are clamped before they become bytes. POVID's code lets them wrap (1.1 becomes 24 of 255); this does not.
    """
    within("step", step, 0, STEPS - 1)
    if int(step) != step:
        raise ValueError(f"step={step!r} must be a whole number")
    values, kept = unit(image), alpha_bars()[int(step)]
    drawn = torch.randn(values.shape, dtype=torch.float64, generator=generator)
    return picture(kept.sqrt() * values + (1 - kept).sqrt() * drawn)


def gaussian_blur(image: Image.Image, _generator: torch.Generator, *, radius: float = 8.0) -> Image.Image:
    """Gaussian blur with a standard deviation of ``radius`` pixels. Draws nothing."""
    from PIL import ImageFilter

    within("radius", radius, 0, 1000, above=True)
    unit(image)
    return image.filter(ImageFilter.GaussianBlur(radius))
