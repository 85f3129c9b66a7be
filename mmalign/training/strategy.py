"""The accelerator, after checking that what the configuration asks for is what is in effect."""

from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import nn

from mmalign.training.config import Config
from mmalign.training.optim import check_optimizer

_TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
_STRATEGIES = {
    DistributedType.NO: "single",
    DistributedType.MULTI_GPU: "ddp",
    DistributedType.MULTI_CPU: "ddp",
    DistributedType.FSDP: "fsdp",
    DistributedType.DEEPSPEED: "deepspeed",
}
_HOW_TO_START = {
    "single": "start it with plain `mmalign train ...`",
    "ddp": "start it with `torchrun --nproc-per-node N -m mmalign.cli train ...`, or `accelerate launch --multi_gpu`",
}


def check_packages(config: Config) -> None:
    """ValueError for a tracker or optimiser whose package is missing; costs nothing, so call it before loading."""
    check_optimizer(config.training)
    for tracker in config.training.trackers:
        if not any(find_spec(package) for package in _TRACKER_PACKAGES[tracker]):
            raise ValueError(
                f"training.trackers: {tracker} is not installed; pip install {tracker}, or leave it out "
                "(log.jsonl is always written)"
            )


def start_accelerator(config: Config, folder: Path) -> Accelerator:
    """The accelerator of one run; ValueError where the parallel strategy is not the one asked for."""
    check_packages(config)
    # accelerate keeps one state per process and refuses another precision; each run here is a fresh one.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        log_with=list(config.training.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
        # Buffers are constant in these models, and the reference's forward must not wait for other processes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    refuse_other_strategy(config.training.strategy, accelerator.distributed_type)
    return accelerator


def refuse_other_strategy(requested: str, in_effect: DistributedType) -> None:
    """ValueError where ``requested`` is not what this process was started with, or is not supported."""
    actual = _STRATEGIES.get(in_effect, in_effect.value.lower())
    for strategy in (requested, actual):
        if strategy not in ("auto", *_HOW_TO_START):
            raise ValueError(
                f"training.strategy: {strategy} is not supported by this version of mmalign; use single or ddp"
            )
    if requested not in ("auto", actual):
        raise ValueError(
            f"training.strategy: {requested} was asked for, but this process runs as {actual}; "
            f"{_HOW_TO_START[requested]}, or set training.strategy={actual}"
        )


def use_gradient_checkpointing(policy: nn.Module) -> None:
    """Switch it on; ValueError where the model has none."""
    enable = getattr(policy, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ValueError(f"training.gradient_checkpointing: {type(policy).__name__} does not offer it; set it to false")
    enable()
