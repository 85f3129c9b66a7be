"""What is trained of a denoiser, and the reference that it is compared with, set up together."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmalign.losses import Objective
from mmalign.models import Components, make_trainable
from mmalign.models.lora import modules_in_full
from mmalign.models.lora_files import read_lora
from mmalign.models.lora_weights import (
    POLICY,
    REFERENCE,
    START,
    LoRAWeights,
    copy_adapter,
    load_adapter,
    merge,
    plain_modules,
    set_active,
)
from mmalign.references import (
    AdapterReference,
    FrozenReference,
    LoRAOffReference,
    Reference,
    RefreshedReference,
)
from mmalign.training.config import Config, LoRAConfig


def reference_kind(config: Config, objective: Objective) -> str:
    """What ``reference`` comes to with this objective and these weights; never ``auto`` or ``cached``."""
    kind, lora = config.reference.kind, config.model.lora
    if not objective.needs_reference:
        if kind not in ("auto", "none"):
            raise ValueError(f"reference: {kind} would be ignored, the objective needs none; use auto")
        return "none"
    if kind == "none":
        raise ValueError("the objective compares with a reference; use reference: auto, frozen or lora_off")
    if kind not in ("auto", "cached"):
        return kind
    if lora is None or (lora.train_also and (config.family != "vlm" or lora.dora)):
        return "frozen"
    # DoRA switched off is the base model, but its untrained adapter is that only up to rounding.
    return "adapter" if lora.dora else "lora_off"


def set_up_denoiser(components: Components, config: Config, objective: Objective) -> Reference | None:
    """Make the denoiser trainable and give its reference, which scores exactly like it before the first step.

    With ``model.adapter`` both start from the base model with that adapter.
    """
    kind, lora = reference_kind(config, objective), config.model.lora
    denoiser: Any = components.denoiser
    start = None
    if config.model.adapter is not None:
        start = read_start(config, denoiser, kind)
    if lora is None:
        return _set_up_full(denoiser, start, config, kind)
    kept = [START] if start is not None and kind != "adapter" else []
    if start is not None and kept:
        load_adapter(denoiser, start, START)
        set_active(denoiser, kept)
    # Before the trained adapter is added, which the copy must not have.
    frozen = FrozenReference(denoiser) if kind == "frozen" else None
    if start is not None and not kept:
        denoiser.requires_grad_(False)
        load_adapter(denoiser, start, POLICY, dropout=lora.dropout)
        set_active(denoiser, [POLICY], trained=POLICY)
    else:
        make_trainable(denoiser, lora)
    if kind in ("none", "frozen"):
        return frozen
    if kind == "lora_off":
        return LoRAOffReference(denoiser, kept, copy_trained=bool(lora.train_also))
    if kind in ("snapshot", "ema") and lora.train_also:
        return _refreshed(config, *_mirrored_copy(denoiser))
    copies = copy_adapter(denoiser, POLICY, REFERENCE)
    reference = AdapterReference(denoiser, [*kept, REFERENCE])
    return reference if kind == "adapter" else _refreshed(config, reference, copies)


def _set_up_full(denoiser: nn.Module, start: LoRAWeights | None, config: Config, kind: str) -> Reference | None:
    # In fp32 first: what is merged should not be rounded to the precision of the stored weights.
    make_trainable(denoiser, None)
    if start is not None:
        merge(denoiser, start)
    if kind == "none":
        return None
    return FrozenReference(denoiser) if kind == "frozen" else _refreshed(config, *_mirrored_copy(denoiser))


def _mirrored_copy(denoiser: nn.Module) -> tuple[FrozenReference, dict[str, Tensor]]:
    """A copy of the policy as it is, and the copy's tensors of what is trained."""
    copy = FrozenReference(denoiser)
    own = dict(copy.module.named_parameters())
    return copy, {name: own[name] for name, value in denoiser.named_parameters() if value.requires_grad}


def _refreshed(config: Config, inner: Reference, mirrored: Mapping[str, Tensor]) -> RefreshedReference:
    return RefreshedReference(inner, mirrored, every=config.reference.every, decay=config.reference.decay)


def read_start(config: Config, denoiser: nn.Module, kind: str) -> LoRAWeights:
    """``model.adapter`` for ``denoiser`` (which may be a skeleton); ValueError where it cannot be started from."""
    path, lora = config.model.adapter, config.model.lora
    assert path is not None
    try:
        start = read_lora(path, denoiser)
    except ValueError as error:
        raise ValueError(f"model.adapter: {error}") from error
    if lora is None:
        return start
    merging = f"mmalign export {path} --base {config.model.name} --format merged --out FOLDER, then model.name=FOLDER"
    if start.modules:
        raise ValueError(
            f"model.adapter: {path} holds {len(start.modules)} weights that were trained in full, such as "
            f"{next(iter(start.modules))}, which a LoRA on top cannot carry along. Merge it first: {merging}"
        )
    if kind == "adapter":
        _check_same_shape(start, lora, denoiser, path)
    elif start.is_dora:
        raise ValueError(
            f"model.adapter: {path} is a DoRA, and a LoRA on top of it could not be exported as one. Train itself on "
            f"with reference: adapter, or merge it first: {merging}"
        )
    _refuse_both(start, lora, denoiser)
    return start


def _refuse_both(start: LoRAWeights, lora: LoRAConfig, denoiser: nn.Module) -> None:
    in_full = tuple(f"{name}." for name in modules_in_full(denoiser, lora))
    both = [name for name in start.layers if f"{name}.".startswith(in_full)]
    if both:
        raise ValueError(f"model.lora.train_also names {both[0]}, which model.adapter adapts already; leave it out")


def _check_same_shape(start: LoRAWeights, lora: LoRAConfig, denoiser: nn.Module, path: str) -> None:
    """With ``reference: adapter`` the adapter itself is trained on, so ``model.lora`` has to describe it."""
    wanted = {
        name
        for name in plain_modules(denoiser)
        for target in lora.targets
        if name == target or name.endswith(f".{target}")
    }
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    ranks = {layer.rank for layer in start.layers.values()}
    alike = (
        wanted == start.layers.keys()
        and ranks == {lora.rank}
        and start.is_dora == lora.dora
        and all(abs(layer.scale - scale) <= 1e-6 * scale for layer in start.layers.values())
    )
    if alike:
        return
    if len(ranks) > 1 or start.uniform_scale is None:
        raise ValueError(
            f"model.adapter: {path} has layers of several ranks or alphas ({sorted(ranks)}) and cannot be trained on "
            "itself; use reference: auto, which trains a fresh LoRA on top of it"
        )
    rank, alpha = ranks.pop(), start.uniform_scale * next(iter(start.layers.values())).rank
    targets = sorted({_ending(name, start.layers, denoiser) for name in start.layers})
    raise ValueError(
        f"reference: adapter trains {path} itself on, and model.lora describes another one. Set model.lora="
        f"{{rank: {rank}, alpha: {alpha:g}, dora: {str(start.is_dora).lower()}, targets: [{', '.join(targets)}]}}, or "
        "use reference: auto, which trains a fresh LoRA on top of it"
    )


def _ending(name: str, adapted: Mapping[str, Any], denoiser: nn.Module) -> str:
    """The shortest ending of ``name`` that only adapted layers have."""
    parts = name.split(".")
    modules = [module for module in plain_modules(denoiser) if module not in adapted]
    for start in range(len(parts) - 1, -1, -1):
        ending = ".".join(parts[start:])
        if not parts[start].isdigit() and not any(m == ending or m.endswith(f".{ending}") for m in modules):
            return ending
    return name
