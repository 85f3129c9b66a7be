"""LoRA weights apart from any file layout: read from a denoiser, put into one, or merged into its weights."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mmalign.models.fused_lora import fuse_lora

POLICY = "default"
"""The adapter that is trained."""
START = "start"
"""The adapter that a run starts from and leaves as it is."""
REFERENCE = "reference"
"""The frozen adapter that the policy is compared with."""

_ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LoRALayer:
    """W + alpha / rank * up @ down for one layer; with ``magnitude`` m [out] that sum V becomes m * V / |V| by rows.

    ``down`` [rank, in, ...] and ``up`` [out, rank, ...] as the layer's own kind of weight (linear or convolution).
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the product."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoRAWeights:
    """``layers`` by module name in the denoiser; ``modules``: parameter name -> weight of what was trained in full."""

    layers: Mapping[str, LoRALayer]
    modules: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_dora(self) -> bool:
        """True where layers have magnitudes."""
        return any(layer.magnitude is not None for layer in self.layers.values())

    @property
    def uniform_scale(self) -> float | None:
        """The factor of every layer, or None where they differ."""
        scales = {layer.scale for layer in self.layers.values()}
        return scales.pop() if len(scales) == 1 else None


def peft_config(weights: LoRAWeights, dropout: float = 0.0) -> LoraConfig:
    """A peft configuration of exactly these layers; ranks and alphas that are not the most common ones as patterns."""
    rank = _most_common(layer.rank for layer in weights.layers.values())
    alpha = _most_common(layer.alpha for layer in weights.layers.values())
    # peft reads patterns as regular expressions on the end of a name; ^ makes them the whole name.
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float works, and is saved as one
        rank_pattern={f"^{name}": layer.rank for name, layer in weights.layers.items() if layer.rank != rank},
        alpha_pattern={f"^{name}": layer.alpha for name, layer in weights.layers.items() if layer.alpha != alpha},
        target_modules=sorted(weights.layers),
        lora_dropout=dropout,
        use_dora=weights.is_dora,
    )


def check_fits(denoiser: nn.Module, weights: LoRAWeights, origin: str) -> None:
    """ValueError where a layer of ``weights`` is not one of ``denoiser``, or has another shape."""
    modules = plain_modules(denoiser)
    parameters = {f"{name}.{own}": value for name, module in modules.items() for own, value in _own(module)}
    for name, layer in weights.layers.items():
        module = modules.get(name)
        if not isinstance(module, _ADAPTED):
            raise ValueError(
                f"{origin} does not fit {type(denoiser).__name__}: it has no linear or conv layer {name!r}"
            )
        shape = _shape(module)
        expected = ((layer.rank, *shape[1:]), (shape[0], layer.rank, *[1] * (len(shape) - 2)))
        if (tuple(layer.down.shape), tuple(layer.up.shape)) != expected:
            raise ValueError(
                f"{origin} does not fit {type(denoiser).__name__}: {name} is {shape}, its LoRA "
                f"{tuple(layer.up.shape)} times {tuple(layer.down.shape)}"
            )
    for name, value in weights.modules.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ValueError(f"{origin} does not fit {type(denoiser).__name__}: {name} {tuple(value.shape)}")


def _shape(module: Any) -> tuple[int, ...]:
    """Of the weight, also where it is quantized, and stored in another shape."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def plain_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The model's own modules by their names without adapters."""
    found: dict[str, nn.Module] = {}
    inside = tuple(f"{name}." for name, module in denoiser.named_modules() if isinstance(module, LoraLayer))
    for name, module in denoiser.named_modules():
        if isinstance(module, LoraLayer):
            found[name] = module.get_base_layer()
        elif not name.startswith(inside):
            found[name] = module
    return found


def load_adapter(denoiser: Any, weights: LoRAWeights, name: str, *, dropout: float = 0.0) -> None:
    """Add ``weights`` to ``denoiser`` as the adapter ``name``, frozen, in fp32; what is active stays as it is.

    ValueError where they do not fit. ``modules`` are not touched: see :func:`set_modules`.
    """
    check_fits(denoiser, weights, "the LoRA")
    active = active_adapters(denoiser)
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    keys = {f"{layer}.lora_A.weight": value.down for layer, value in weights.layers.items()}
    with torch.random.fork_rng(devices=[]), several_adapters():  # peft draws weights, which are then replaced
        inject_adapter_in_model(peft_config(weights, dropout), denoiser, adapter_name=name, state_dict=keys)
    fuse_lora(denoiser)
    denoiser._hf_peft_config_loaded = True  # what diffusers' own add_adapter sets
    for layer_name, layer in lora_layers(denoiser).items():
        if layer_name in weights.layers:
            _fill(layer, name, weights.layers[layer_name])
    set_active(denoiser, active)
    for parameter in trained:
        parameter.requires_grad_(True)


def _fill(layer: Any, name: str, weights: LoRALayer) -> None:
    device = layer.get_base_layer().weight.device
    pairs = [(layer.lora_A[name], weights.down), (layer.lora_B[name], weights.up)]
    if weights.magnitude is not None:
        holder = layer.lora_magnitude_vector[name]
        pairs.append((holder, weights.magnitude.reshape(holder.weight.shape)))
    for module, value in pairs:
        module.weight.data = value.detach().to(device, torch.float32).clone()
        module.weight.requires_grad_(False)


def copy_adapter(denoiser: Any, source: str, target: str) -> dict[str, Tensor]:
    """A frozen copy ``target`` of the adapter ``source``, without dropout: parameter name of the source -> its copy."""
    load_adapter(denoiser, weights_of(denoiser, [source]), target)
    names = {f"{name}.": layer for name, layer in lora_layers(denoiser).items()}
    copies = {}
    for prefix, layer in names.items():
        of_layer = dict(layer.named_parameters())
        for name in of_layer:
            parts = name.split(".")
            if source in parts:
                copies[prefix + name] = of_layer[".".join(target if part == source else part for part in parts)]
    return copies


def weights_of(denoiser: nn.Module, adapters: Sequence[str] | None = None) -> LoRAWeights:
    """The adapters that are active (or named), taken together as one LoRA.

    Several: ranks add up, W + s1 B1 A1 + s2 B2 A2 = W + [s1 B1, s2 B2] [A1; A2], with alpha = rank. ValueError for DoRA
    among several, whose sum is none.
    """
    names = list(active_adapters(denoiser) if adapters is None else adapters)
    layers = {}
    for layer_name, layer in lora_layers(denoiser).items():
        parts = [_layer_of(layer, name) for name in names if name in layer.lora_A]
        if parts:
            layers[layer_name] = parts[0] if len(parts) == 1 and len(names) == 1 else _joined(parts)
    return LoRAWeights(layers)


def _layer_of(layer: Any, name: str) -> LoRALayer:
    down, up = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    magnitude = layer.lora_magnitude_vector[name].weight.detach().flatten() if layer.use_dora.get(name) else None
    rank, alpha, scale = layer.r[name], layer.lora_alpha[name], layer.scaling[name]
    # rsLoRA's factor alpha / sqrt(rank) is that of a plain LoRA with alpha * sqrt(rank).
    return LoRALayer(down, up, float(alpha if scale == alpha / rank else scale * rank), magnitude)


def _joined(parts: Sequence[LoRALayer]) -> LoRALayer:
    if any(part.magnitude is not None for part in parts):
        raise ValueError("a DoRA and another adapter are not one LoRA; merge one of them into the model first")
    down = torch.cat([part.down for part in parts])
    up = torch.cat([part.scale * part.up for part in parts], dim=1)
    return LoRALayer(down, up, float(down.shape[0]))


def set_modules(denoiser: nn.Module, modules: Mapping[str, Tensor], scale: float = 1.0) -> None:
    """Move the parameters that were trained in full to W + scale * (trained - W)."""
    named = {f"{name}.{own}": value for name, module in plain_modules(denoiser).items() for own, value in _own(module)}
    with torch.no_grad():
        for name, value in modules.items():
            weight = value.to(named[name])
            # At 1 the trained value itself, without the rounding of a difference.
            named[name].copy_(weight if scale == 1 else named[name].lerp(weight, scale))


def merge(denoiser: Any, weights: LoRAWeights, scale: float = 1.0) -> None:
    """W <- W + scale * (W' - W) with W' = W under ``weights``, computed in fp32 and rounded once; no adapter stays."""
    check_fits(denoiser, weights, "the LoRA")
    modules = plain_modules(denoiser)
    with torch.no_grad():
        for name, layer in weights.layers.items():
            target: Any = modules[name]
            whole = merged(target.weight, layer)
            target.weight.copy_(whole if scale == 1 else target.weight.float().lerp(whole, scale))
    set_modules(denoiser, weights.modules, scale)


def merged(weight: Tensor, layer: LoRALayer) -> Tensor:
    """W + scale * up @ down in fp32, and m * V / |V| by output rows where there is a magnitude."""
    up, down = (part.detach().to(weight.device, torch.float32).flatten(1) for part in (layer.up, layer.down))
    total = weight.detach().float() + layer.scale * (up @ down).reshape(weight.shape)
    if layer.magnitude is None:
        return total
    rows = (-1, *[1] * (weight.ndim - 1))
    length = total.flatten(1).norm(dim=1).reshape(rows)
    return layer.magnitude.to(total).reshape(rows) * total / length


def lora_layers(denoiser: nn.Module) -> dict[str, Any]:
    """Layers with adapters by module name."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, LoraLayer)}


def active_adapters(denoiser: nn.Module) -> list[str]:
    """Names of the adapters that take part in a forward, in their order; none without adapters."""
    return next((list(layer.active_adapters) for layer in lora_layers(denoiser).values()), [])


@contextmanager
def several_adapters() -> Iterator[None]:
    """Inside, peft does not warn that a model gets a second adapter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def set_active(denoiser: nn.Module, names: Sequence[str], trained: str | None = None) -> None:
    """Let exactly the adapters ``names`` take part in a forward; gradients only for ``trained``."""
    for layer in lora_layers(denoiser).values():
        layer.set_adapter(list(names))
        for holder in layer.adapter_layer_names:
            for name, module in getattr(layer, holder).items():
                module.requires_grad_(name == trained)


def _own(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return module.named_parameters(recurse=False)


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
