"""What a configuration and a loaded pipeline come to: the objective, checked, and the adapter that scores."""

import torch

from mmalign.adapters import DiffusionAdapter, FlowAdapter
from mmalign.losses import Objective
from mmalign.models import Components, peek
from mmalign.training.config import Config, TimestepConfig, TrainingConfig
from mmalign.training.image_branches import check_rows, kind_of_rows, reward_problem
from mmalign.training.image_reference import reference_kind
from mmalign.types import CHOSEN, REJECTED

FLOW_KINDS = ("sd3", "flux")
TIMESTEPS = {"diffusion": ("uniform", "turbo"), "flow": ("uniform", "logit_normal")}
FLOW_SETTINGS = ("shift", "logit_mean", "logit_std")


def family(kind: str) -> str:
    """``flow`` or ``diffusion``."""
    return "flow" if kind in FLOW_KINDS else "diffusion"


def checked_objective(config: Config) -> Objective:
    """The objective of ``config``; ValueError where it, the reference or the timesteps do not fit rows or the model.

    No weight is loaded and no picture is read. Sources whose kind of row only their file tells are checked when it is
    opened (``image_data.open_data``).
    """
    if config.family != "image":
        raise ValueError(f"this is for image generators, and the recipe has family: {config.family}")
    objective = Objective(config.objective)
    problem = reward_problem(objective)
    if problem is not None:
        raise ValueError(problem)
    kind = kind_of_rows(config.data)
    if kind is not None:
        check_rows(objective, kind)
    reference_kind(config, objective)
    _check_timesteps(config)
    problem = safeguard_problem(config, objective)
    if problem is not None:
        raise ValueError(f"training.safeguard: {problem}")
    return objective


def safeguard_problem(config: Config, objective: Objective) -> str | None:
    """Why this objective gives ``training.safeguard`` no pair to work on."""
    if config.training.safeguard is None or {CHOSEN, REJECTED} <= set(objective.branches):
        return None
    return (
        f"it weighs the {REJECTED} side of a pair against the {CHOSEN} one, but the objective reads "
        f"{', '.join(objective.branches)}; use it with losses on pairs, or leave it out"
    )


def network_dtype(config: Config) -> torch.dtype:
    """What the network gets: the dtype of frozen weights under LoRA; trained weights are always fp32."""
    return getattr(torch, config.model.dtype) if config.model.lora else torch.float32


def _check_timesteps(config: Config) -> None:
    kind = peek(config.model).kind
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
    if family(kind) == "flow" and timesteps.zero_terminal_snr:
        raise ValueError(
            f"training.timesteps.zero_terminal_snr would be ignored: model.name={config.model.name} is a flow model "
            f"({kind}), whose last time is pure noise already; leave it out"
        )
    ignored = [name for name in changed if name != "shift"]
    if timesteps.kind == "uniform" and ignored:
        raise ValueError(
            f"training.timesteps.{ignored[0]} would be ignored by kind: uniform; set kind: logit_normal or leave it out"
        )


def build_adapter(components: Components, training: TrainingConfig) -> DiffusionAdapter | FlowAdapter:
    """The adapter of the pipeline's family, with the noise that the model was made for."""
    timesteps, safeguard = training.timesteps, training.safeguard.mu if training.safeguard else None
    if family(components.kind) == "diffusion":
        scheduler = components.noise_scheduler
        if timesteps.zero_terminal_snr:
            scheduler = type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=True)
        return DiffusionAdapter(scheduler, timesteps=timesteps.kind, safeguard=safeguard)
    guidance = components.config.guidance
    return FlowAdapter(
        components.noise_scheduler,
        family=components.kind,
        guidance=1.0 if guidance is None else guidance,
        timesteps=timesteps.kind,
        shift=timesteps.shift,
        logit_mean=timesteps.logit_mean,
        logit_std=timesteps.logit_std,
        safeguard=safeguard,
    )
