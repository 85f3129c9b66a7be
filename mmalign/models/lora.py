"""What is trained: low-rank adapters on a frozen denoiser, modules in full beside them, or all of its weights."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from mmalign.models.fused_lora import fuse_lora
from mmalign.models.lora_weights import (
    POLICY,
    active_adapters,
    lora_layers,
    plain_modules,
    set_active,
    several_adapters,
)
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

    B starts at zero (A is gaussian, as in the diffusers scripts), so the policy starts exactly at the model as it is,
    with the adapters that it has already. Adapters are fp32, and so are the modules of ``train_also``, which are
    trained in full. ``ValueError`` for targets that match nothing, listing the names that exist.
    """
    also = modules_in_full(denoiser, config)
    active = active_adapters(denoiser)
    _check_targets(denoiser, config.targets)
    denoiser.requires_grad_(False)
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a float works, and is saved as one
        target_modules=list(config.targets),
        lora_dropout=config.dropout,
        use_dora=config.dora,
        use_rslora=config.rslora,
        init_lora_weights="gaussian",
    )
    with several_adapters():
        denoiser.add_adapter(adapter, adapter_name=POLICY)
    fuse_lora(denoiser)
    set_active(denoiser, [*active, POLICY], trained=POLICY)
    for parameter in trainable_parameters(denoiser):
        parameter.data = parameter.data.to(torch.float32)
    if config.dora:
        _measure_magnitudes(denoiser)
    train_in_full(denoiser, also)


def train_in_full(denoiser: nn.Module, modules: Iterable[str]) -> None:
    """Let the own weights of ``modules`` (paths) be trained, in fp32."""
    for name in modules:
        denoiser.get_submodule(name).requires_grad_(True).to(torch.float32)


def modules_in_full(denoiser: nn.Module, config: LoRAConfig) -> list[str]:
    """Paths of the modules that ``train_also`` names, outermost ones only; ValueError for names that match nothing."""
    modules = plain_modules(denoiser)
    with_weights = [name for name in modules if name and next(modules[name].parameters(), None) is not None]
    found: list[str] = []
    for also in config.train_also:
        matching = [name for name in with_weights if _matches(name, also)]
        if not matching:
            raise ValueError(
                f"model.lora.train_also: {also} matches no module with weights of {type(denoiser).__name__}. "
                f"Names end in: {', '.join(sorted({_suffix(name) for name in with_weights}))}"
            )
        found += matching
    _refuse_both(with_weights, found, config.targets)
    return sorted(name for name in set(found) if not _is_inside(name, found))


def _refuse_both(names: Sequence[str], in_full: Sequence[str], targets: Sequence[str]) -> None:
    adapted = [name for name in names if any(_matches(name, target) for target in targets)]
    both = [name for name in adapted if name in in_full or _is_inside(name, in_full)]
    if both:
        raise ValueError(
            f"model.lora.train_also and model.lora.targets both name {both[0]} ({len(both)} modules in all); a layer "
            "is trained either in full or through LoRA"
        )


def full_weights_of(denoiser: nn.Module, config: LoRAConfig) -> dict[str, Tensor]:
    """Parameter name -> weight of the modules that ``train_also`` trains in full."""
    modules = plain_modules(denoiser)
    return {
        f"{name}.{own}": value.detach()
        for name in modules_in_full(denoiser, config)
        for own, value in modules[name].named_parameters()
    }


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets, in the module's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def has_lora(denoiser: nn.Module) -> bool:
    """True where adapters have been added."""
    return bool(getattr(denoiser, "peft_config", None))


def _measure_magnitudes(denoiser: nn.Module) -> None:
    """|W| by rows in fp32, exactly as a forward of the fp32 adapter measures it; peft measured it in W's precision."""
    for layer in lora_layers(denoiser).values():
        if POLICY in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[POLICY]
            weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
            magnitude.weight.data = magnitude.get_weight_norm(weight, torch.zeros_like(weight), layer.scaling[POLICY])


def _check_targets(denoiser: nn.Module, targets: list[str]) -> None:
    names = [name for name, module in plain_modules(denoiser).items() if isinstance(module, _ADAPTABLE)]
    unknown = [target for target in targets if not any(_matches(name, target) for name in names)]
    if unknown:
        raise ValueError(
            f"model.lora.targets: {', '.join(unknown)} matches no layer of {type(denoiser).__name__}. "
            f"Layer names end in: {', '.join(sorted({_suffix(name) for name in names}))}"
        )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _suffix(name: str) -> str:
    """``to_q`` of ``...attn1.to_q`` and ``to_out.0`` of ``...attn1.to_out.0``: up to the last part that is a word."""
    parts = name.split(".")
    first = max((index for index, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[first:])
