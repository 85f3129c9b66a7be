"""What all sides of ``benchmarks.vlm`` are set to, and what they offer."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.vlm_models import DTYPES, Profile

BETA, RATE, DECAY, CLIP, SEED = 0.1, 1e-4, 0.01, 1.0, 0


class Side(NamedTuple):
    """``modules`` holds the LoRA. ``step_0``: (loss, scores of each row by name) of the rows, without an update.

    ``train``: do the steps, and call back before the first and after each. ``ahead``: what is done once before that,
    if anything.
    """

    modules: nn.Module
    step_0: Callable[[], tuple[Tensor, dict[str, Tensor]]]
    train: Callable[[Callable[[], None]], None]
    ahead: Callable[[], None] | None = None


def autocast(profile: Profile) -> torch.autocast:
    """bf16 where the profile is of bf16, else nothing."""
    return torch.autocast(profile.device, dtype=torch.bfloat16, enabled=DTYPES[profile.dtype] is torch.bfloat16)
