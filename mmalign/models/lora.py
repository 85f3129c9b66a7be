"""What is trained: low-rank adapters on a frozen denoiser, or all of its weights."""

from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from mmalign.training.config import LoRAConfig

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def make_trainable(denoiser: Any, lora: LoRAConfig | None) -> list[nn.Parameter]:
    """Set up ``denoiser`` for training (adapters where ``lora`` is given, else every weight); gives what is trained.

    Trained weights are fp32 whatever the precision of the frozen ones: bf16 cannot hold small updates.
    """
    if lora is not None:
        add_lora(denoiser, lora)
    else:
        denoiser.requires_grad_(True).to(torch.float32)
    return trainable_parameters(denoiser)


def add_lora(denoiser: Any, config: LoRAConfig) -> None:
    """Freeze ``denoiser`` and add adapters ``W x + alpha / rank * B A x`` to every module ending in a target.

    B starts at zero (A is gaussian, as in the diffusers scripts), so the policy starts exactly at the base model.
    Adapters are fp32. ``ValueError`` for targets that match nothing, listing the names that exist.
    """
    _check_targets(denoiser, config.targets)
    denoiser.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # a float works, and is saved as one
            target_modules=list(config.targets),
            lora_dropout=config.dropout,
            init_lora_weights="gaussian",
        )
    )
    for parameter in trainable_parameters(denoiser):
        parameter.data = parameter.data.to(torch.float32)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets, in the module's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def has_lora(denoiser: nn.Module) -> bool:
    """True where adapters have been added."""
    return bool(getattr(denoiser, "peft_config", None))


def _check_targets(denoiser: nn.Module, targets: list[str]) -> None:
    names = [name for name, module in denoiser.named_modules() if isinstance(module, _ADAPTABLE)]
    unknown = [target for target in targets if not any(_matches(name, target) for name in names)]
    if unknown:
        raise ValueError(
            f"model.lora.targets: {', '.join(unknown)} matches no layer of {type(denoiser).__name__}. "
            f"Layer names end in: {', '.join(sorted({_suffix(name) for name in names}))}"
        )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _suffix(name: str) -> str:
    """``to_q`` of ``...attn1.to_q`` and ``to_out.0`` of ``...attn1.to_out.0``: up to the last part that is a word."""
    parts = name.split(".")
    first = max((index for index, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[first:])
