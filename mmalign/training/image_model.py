"""What a run makes of a loaded pipeline: the trainable denoiser, its reference, and the adapter that scores it."""

from mmalign.adapters import DiffusionAdapter, FlowAdapter
from mmalign.losses import Objective
from mmalign.models import Components, make_trainable, peek
from mmalign.references import FrozenReference, LoRAOffReference, Reference
from mmalign.training.config import Config, TimestepConfig
from mmalign.training.image_rows import BRANCHES
from mmalign.types import CHOSEN, REJECTED

FLOW_KINDS = ("sd3",)
TIMESTEPS = {"diffusion": ("uniform", "turbo"), "flow": ("uniform", "logit_normal")}
FLOW_SETTINGS = ("shift", "logit_mean", "logit_std")


def family(kind: str) -> str:
    """``flow`` or ``diffusion``."""
    return "flow" if kind in FLOW_KINDS else "diffusion"


def checked_objective(config: Config) -> Objective:
    """The objective of ``config``; ValueError where it, the reference or the timesteps do not fit pairs or the model.

    No weight is loaded and no picture is read.
    """
    objective = Objective(config.objective)
    _check_branches(objective)
    reference_kind(config, objective)
    _check_timesteps(config)
    return objective


def _check_branches(objective: Objective) -> None:
    lacking = [branch for branch in objective.branches if branch not in BRANCHES]
    if lacking:
        raise ValueError(
            f"objective: pairs of pictures have the branches {CHOSEN} and {REJECTED}, but the terms name "
            f"{', '.join(lacking)}; choose losses that read {CHOSEN} and {REJECTED} (mmalign losses lists them)"
        )
    labels = sorted(objective.asks & {"labels", "desirable"})
    if labels:
        raise ValueError(f"objective: pairs of pictures have no {' and no '.join(labels)}; choose a pairwise loss")


def _check_timesteps(config: Config) -> None:
    kind = peek(config.model.name, revision=config.model.revision).kind
    timesteps, allowed = config.training.timesteps, TIMESTEPS[family(kind)]
    if timesteps.kind not in allowed:
        raise ValueError(
            f"training.timesteps.kind={timesteps.kind} is not for {family(kind)} models, and model.name="
            f"{config.model.name} is one ({kind}); choose {' or '.join(allowed)}"
        )
    defaults = TimestepConfig()
    changed = [name for name in FLOW_SETTINGS if getattr(timesteps, name) != getattr(defaults, name)]
    if family(kind) == "diffusion" and changed:
        raise ValueError(
            f"training.timesteps.{changed[0]} would be ignored: it is for flow models, and model.name="
            f"{config.model.name} is a diffusion model ({kind}); leave it out"
        )
    ignored = [name for name in changed if name != "shift"]
    if timesteps.kind == "uniform" and ignored:
        raise ValueError(
            f"training.timesteps.{ignored[0]} would be ignored by kind: uniform; set kind: logit_normal or leave it out"
        )


def build_adapter(components: Components, timesteps: TimestepConfig) -> DiffusionAdapter | FlowAdapter:
    """The adapter of the pipeline's family, with the noise that the model was made for."""
    if family(components.kind) == "diffusion":
        return DiffusionAdapter(components.noise_scheduler, timesteps=timesteps.kind)
    return FlowAdapter(
        components.noise_scheduler,
        timesteps=timesteps.kind,
        shift=timesteps.shift,
        logit_mean=timesteps.logit_mean,
        logit_std=timesteps.logit_std,
    )


def reference_kind(config: Config, objective: Objective) -> str:
    """``none``, ``lora_off`` or ``frozen``: what ``reference`` comes to with this objective and these weights."""
    if not objective.needs_reference:
        if config.reference in ("frozen", "lora_off"):
            raise ValueError(f"reference: {config.reference} would be ignored, the objective needs none; use auto")
        return "none"
    if config.reference == "none":
        raise ValueError("the objective compares with a reference; use reference: auto, frozen or lora_off")
    if config.reference != "auto":
        return config.reference
    return "lora_off" if config.model.lora else "frozen"


def set_up_denoiser(components: Components, config: Config, objective: Objective) -> Reference | None:
    """Make the denoiser trainable and give its reference, which scores exactly like it before the first step."""
    kind = reference_kind(config, objective)
    denoiser, lora = components.denoiser, config.model.lora
    if kind == "frozen" and lora is not None:
        reference: Reference | None = FrozenReference(denoiser)  # before adapters are added, which it must not have
        make_trainable(denoiser, lora)
        return reference
    make_trainable(denoiser, lora)
    if kind == "none":
        return None
    # Of full weights the copy comes after their cast to fp32: another precision would not score the same.
    return FrozenReference(denoiser) if kind == "frozen" else LoRAOffReference(denoiser)
