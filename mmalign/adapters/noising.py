"""The one place where training noise and timesteps are drawn, and the two ways in which samples are noised.

Draws are made row by row, timestep first and then noise, on the generator's device. Hence one generator gives a batch
of two what it gives two batches of one in sequence, and one generator per row gives each row the same draw however the
rows are split over micro-batches or processes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
TimestepSampler = Callable[[torch.Generator | None, torch.device], Tensor]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which noise is drawn and errors are taken: ``dtype``, but never less than float32."""
    return torch.promote_types(dtype, torch.float32)


def draw(
    rows: int,
    shape: Sequence[int],
    generator: Generators,
    sample_timestep: TimestepSampler,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Shaped[Tensor, " batch"], Float[Tensor, " batch *dims"]]:
    """One timestep [rows] and one noise tensor [rows, *shape] per row, on ``device``.

    ``generator``: None (torch's global state of ``device``), one generator that serves the rows in order, or one per
    row. ``sample_timestep(generator, device)`` gives one timestep as a 0-d tensor. The noise is float64 where ``dtype``
    is float64 and float32 otherwise.
    """
    timesteps, noise = [], []
    for row_generator in _one_per_row(generator, rows):
        drawn_on = device if row_generator is None else row_generator.device
        timesteps.append(sample_timestep(row_generator, drawn_on))
        noise.append(torch.randn(tuple(shape), generator=row_generator, device=drawn_on, dtype=working_dtype(dtype)))
    return torch.stack(timesteps).to(device), torch.stack(noise).to(device)


def _one_per_row(generator: Generators, rows: int) -> Sequence[torch.Generator | None]:
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * rows
    if len(generator) != rows:
        raise ValueError(
            f"got {len(generator)} generators for {rows} rows; give one per row, a single torch.Generator, or None"
        )
    if len({one.device for one in generator}) > 1:
        raise ValueError("the generators of a batch live on different devices; create all of them on one device")
    return generator


def uniform_timestep(num_timesteps: int) -> TimestepSampler:
    """t ~ U{0, ..., T - 1}."""
    return lambda generator, device: torch.randint(num_timesteps, (), generator=generator, device=device)


def turbo_timestep(num_timesteps: int) -> TimestepSampler:
    """t ~ U{T/4 - 1, T/2 - 1, 3T/4 - 1, T - 1}: 249, 499, 749 and 999, the four steps that SDXL-Turbo is trained on."""
    quarter = num_timesteps // 4
    return lambda generator, device: quarter * torch.randint(1, 5, (), generator=generator, device=device) - 1


def uniform_sigma() -> TimestepSampler:
    """sigma ~ U[0, 1)."""
    return lambda generator, device: torch.rand((), generator=generator, device=device)


def logit_normal_sigma(mean: float, std: float) -> TimestepSampler:
    """sigma = sigmoid(mean + std * z), z ~ N(0, 1): Esser et al. 2024 (arXiv 2403.03206), section 3.1."""
    return lambda generator, device: torch.sigmoid(mean + std * torch.randn((), generator=generator, device=device))


def shift_sigma(sigma: Float[Tensor, " batch"], shift: float) -> Float[Tensor, " batch"]:
    """sigma' = shift * sigma / (1 + (shift - 1) * sigma): more mass near noise, for larger pictures (2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def per_sample(values: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """``values`` [batch] shaped [batch, 1, ...] so that they scale the samples of ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
