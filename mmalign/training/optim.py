"""Optimisers and learning rates by their configuration."""

import math
from importlib.util import find_spec

import torch
from torch import nn

from mmalign.training.config import TrainingConfig

DEFAULT_BETAS = TrainingConfig.model_fields["betas"].default


def check_optimizer(config: TrainingConfig) -> None:
    """ValueError where the optimiser needs a package that is missing, or where a setting would be ignored."""
    if config.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "training.optimizer: adamw_8bit needs bitsandbytes, which is not installed; "
            "pip install 'mmalign[8bit]', or use training.optimizer=adamw"
        )
    if config.optimizer == "adafactor" and config.betas != DEFAULT_BETAS:
        raise ValueError(
            f"training.betas = {list(config.betas)} would be ignored: adafactor has none; leave them out, or use "
            "training.optimizer=adamw"
        )


def build_optimizer(config: TrainingConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over ``parameters``, which are on their device already; its learning rate is set every step."""
    check_optimizer(config)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        # LoRA has a thousand small tensors: on a CPU, too, one call for all is several times faster than a loop.
        fused = parameters[0].device.type in ("cuda", "cpu")
        return torch.optim.AdamW(parameters, lr=rate, betas=config.betas, weight_decay=decay, fused=fused)
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found] - an optional extra

        return AdamW8bit(parameters, lr=rate, betas=config.betas, weight_decay=decay)
    from transformers import Adafactor

    return Adafactor(parameters, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of optimizer step ``step`` (0 is the first): linear warmup, then the schedule down to 0 at the end.

    A pure function of the step: there is no scheduler state that could be lost.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * left
