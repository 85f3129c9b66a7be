"""What every loss shares: shapes, precision, and checks of keyword values."""

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, " batch"]
Lists = Float[Tensor, " batch k"]

EXPONENT_LIMIT = 40.0
"""Exponents are clamped here: exp(40) = 2e17 and its square still fit in fp32, so gradient norms stay finite."""


def full_precision(values: Tensor) -> Tensor:
    """``values`` in at least fp32: bf16 and fp16 are promoted, fp32 and fp64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def difference(chosen: Tensor, rejected: Tensor) -> Tensor:
    """chosen - rejected, promoted before the subtraction so that no half-precision rounding enters the margin."""
    return full_precision(chosen) - full_precision(rejected)


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp(min(exponent, EXPONENT_LIMIT)); beyond the limit the value is constant and the gradient 0, never inf."""
    return exponent.clamp(max=EXPONENT_LIMIT).exp()


def require_positive(**values: float) -> None:
    """ValueError unless every value is > 0 (NaN is not)."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")


def require_not_negative(**values: float) -> None:
    """ValueError unless every value is >= 0 (NaN is not)."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}")


def detached(value: float | Tensor) -> float | Tensor:
    """An estimate that is passed in as a number or a tensor, without its gradient."""
    return value.detach() if isinstance(value, Tensor) else value
