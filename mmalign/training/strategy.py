"""The accelerator and the way of sharing the work, after checking that what is asked for is what is in effect."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, ProjectConfiguration
from torch import nn

from mmalign.references import AdapterReference, FrozenReference, LoRAOffReference
from mmalign.training.config import Config
from mmalign.training.optim import check_optimizer
from mmalign.training.processes import (
    LAUNCHER_DEEPSPEED,
    LAUNCHER_FSDP,
    hidden_launcher,
    join_processes,
    processes_started,
)
from mmalign.training.sharding import mesh_of, shard, spread
from mmalign.training.task import Task
from mmalign.training.zero import not_with_zero

_TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
_HOW_TO_START = {
    "single": "start it with plain `mmalign train ...`",
    "ddp": "start it with `torchrun --nproc-per-node N -m mmalign.cli train ...`, or `accelerate launch --multi_gpu`",
    "fsdp": "start it with `torchrun --nproc-per-node N -m mmalign.cli train ... training.strategy=fsdp`, N > 1, or "
    "`accelerate launch --config_file recipes/accelerate/fsdp2.yaml -m mmalign.cli train ...`",
    "deepspeed": "start it with "
    "`accelerate launch --config_file recipes/accelerate/zero2.yaml -m mmalign.cli train ...`",
}
# What a launcher may say beside the strategy: variable -> (values that change nothing, our setting).
_LAUNCHER_SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": ("no", "training.mixed_precision"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "training.accumulation"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "training.compile"),
}
_ELEMENTWISE_OPTIMIZERS = ("adamw",)


def check_packages(config: Config) -> None:
    """ValueError for a tracker or optimiser whose package is missing; costs nothing, so call it before loading."""
    check_optimizer(config.training)
    for tracker in config.training.trackers:
        if not any(find_spec(package) for package in _TRACKER_PACKAGES[tracker]):
            raise ValueError(
                f"training.trackers: {tracker} is not installed; pip install {tracker}, or leave it out "
                "(log.jsonl is always written)"
            )


def check_strategy(config: Config) -> str:
    """``single``, ``ddp``, ``fsdp`` or ``deepspeed``: what is in effect; ValueError where that was not asked for.

    Looks at how this process was started and at nothing else, so call it before loading.
    """
    strategy = strategy_in_effect(config.training.strategy, processes_started())
    _refuse_other_strategy(config.training.strategy, strategy)
    _refuse_launcher_settings(config)
    if strategy == "fsdp":
        problems = [*_not_with_fsdp(config), *(_not_for_fsdp2() if _launched(LAUNCHER_FSDP) else ())]
        if problems:
            raise ValueError("\n".join(["this run cannot be sharded (training.strategy: fsdp):", *problems]))
    if strategy == "deepspeed":
        problems = [*not_with_zero(config, find_spec)]
        if problems:
            raise ValueError(
                "\n".join(["this run cannot go through DeepSpeed (training.strategy: deepspeed):", *problems])
            )
    return strategy


def strategy_in_effect(requested: str, processes: int) -> str:
    """What this process was started for. Several processes without more are ``ddp``, or ``fsdp`` where asked for."""
    if processes == 1:
        return "single"
    if _launched(LAUNCHER_DEEPSPEED):
        return "deepspeed"
    return "fsdp" if requested == "fsdp" or _launched(LAUNCHER_FSDP) else "ddp"


def start_accelerator(config: Config, folder: Path) -> Accelerator:
    """The accelerator of one run; ValueError where the parallel strategy is not the one asked for."""
    check_packages(config)
    check_strategy(config)
    # accelerate keeps one state per process and refuses another precision; each run here is a fresh one.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    join_processes()
    with hidden_launcher():  # mmalign shards by itself; to accelerate these are several processes
        accelerator = Accelerator(
            mixed_precision=config.training.mixed_precision,
            log_with=list(config.training.trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
            # Buffers are constant in these models, and the reference's forward must not wait for other processes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    _refuse_other_type(accelerator)
    requested = config.training.strategy
    _refuse_other_strategy(requested, strategy_in_effect(requested, accelerator.num_processes))
    return accelerator


def shard_task(task: Task, config: Config, accelerator: Accelerator) -> None:
    """Shard policy and reference in place over all processes; RuntimeError where something was left whole."""
    blocks = _launcher_fsdp().transformer_cls_names_to_wrap or () if _launched(LAUNCHER_FSDP) else ()
    mesh = mesh_of(accelerator.device, accelerator.num_processes)
    modules, reference = [task.policy], task.reference
    if isinstance(reference, FrozenReference):
        modules.append(reference.module)
    elif reference is not None and not isinstance(reference, LoRAOffReference | AdapterReference):
        raise ValueError(
            f"training.strategy: fsdp cannot shard a {type(reference).__name__}; use reference: frozen, lora_off or "
            "adapter, or training.strategy=ddp"
        )
    for module in modules:
        shard(module, mesh, mixed_precision=config.training.mixed_precision, blocks=blocks)
        if spread(module) != accelerator.num_processes:
            raise RuntimeError(f"{type(module).__name__} is not spread over all {accelerator.num_processes} processes")


def use_gradient_checkpointing(policy: nn.Module) -> None:
    """Switch it on; ValueError where the model has none."""
    enable = getattr(policy, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ValueError(f"training.gradient_checkpointing: {type(policy).__name__} does not offer it; set it to false")
    enable()


def _refuse_other_strategy(requested: str, actual: str) -> None:
    if requested not in ("auto", actual):
        raise ValueError(
            f"training.strategy: {requested} was asked for, but this process runs as {actual}; "
            f"{_HOW_TO_START[requested]}, or set training.strategy={actual}"
        )
    asked = "FSDP" if _launched(LAUNCHER_FSDP) else "DeepSpeed" if _launched(LAUNCHER_DEEPSPEED) else None
    if actual == "single" and asked:
        raise ValueError(
            f"the launcher asks for {asked}, but this is the only process; give it --num_processes N, N > 1, or "
            f"{_HOW_TO_START['single']}"
        )


def _refuse_launcher_settings(config: Config) -> None:
    """The configuration decides; another value given to the launcher would be ignored, or worse, take part."""
    for variable, (harmless, setting) in _LAUNCHER_SETTINGS.items():
        given = os.environ.get(variable, harmless).lower()
        same = setting == "training.mixed_precision" and given == config.training.mixed_precision
        if given != harmless and not same:
            raise ValueError(
                f"the launcher sets {variable.removeprefix('ACCELERATE_').lower()} to {given}, which is not its place: "
                f"leave it out there and use {setting}"
            )


def _not_with_fsdp(config: Config) -> Iterator[str]:
    """What was not shown to be right under FSDP2, with what to use in its place."""
    training = config.training
    if training.mixed_precision == "fp16":
        yield "  - training.mixed_precision: fp16 scales losses, which was never tried on sharded gradients; use bf16"
    if training.compile:
        yield "  - training.compile was never tried on sharded weights; leave it out, or use training.strategy=ddp"
    if config.reference.kind in ("snapshot", "ema"):
        yield f"  - reference: {config.reference.kind} follows whole weights; use frozen, lora_off or adapter"
    lora = config.model.lora
    if lora and lora.train_also and (config.reference.kind == "lora_off" or config.family == "vlm"):
        yield "  - model.lora.train_also with the LoRA switched off needs whole weights; use training.strategy=ddp"
    if training.optimizer not in _ELEMENTWISE_OPTIMIZERS:
        allowed = ", ".join(_ELEMENTWISE_OPTIMIZERS)
        yield f"  - training.optimizer: {training.optimizer} looks at whole tensors and would see shares; use {allowed}"


def _not_for_fsdp2() -> Iterator[str]:
    """Settings in the launcher's file that would be ignored."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        yield f"  - fsdp_version: {version}; write 2"
        return
    plugin = _launcher_fsdp()
    if plugin.reshard_after_forward is not True:
        yield "  - fsdp_reshard_after_forward: false; write true, mmalign always frees gathered weights"
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        yield "  - fsdp_offload_params: true; write false, offloading is not supported"
    if plugin.activation_checkpointing:
        yield "  - fsdp_activation_checkpointing: true; write false and set training.gradient_checkpointing=true"
    if plugin.cpu_ram_efficient_loading:
        yield (
            "  - fsdp_cpu_ram_efficient_loading: true; write false: transformers would leave the text encoders of all "
            "processes but the first empty"
        )
    if "FULL" not in str(plugin.state_dict_type):
        yield "  - fsdp_state_dict_type; write FULL_STATE_DICT, checkpoints here hold whole tensors"
    if plugin.ignored_modules:
        yield "  - fsdp_ignored_modules; leave it out, everything is sharded"
    if plugin.min_num_params is not None:
        yield "  - fsdp_auto_wrap_policy: SIZE_BASED_WRAP; write TRANSFORMER_BASED_WRAP, or NO_WRAP for the model's own"


def _refuse_other_type(accelerator: Accelerator) -> None:
    """Whatever else the environment made of accelerate (TPU, Megatron, ...) is not what was checked."""
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ValueError(
            f"accelerate was started for {accelerator.distributed_type.value.lower()}, which is not supported; "
            "use single, ddp or fsdp on CUDA GPUs or CPUs"
        )


def _launcher_fsdp() -> FullyShardedDataParallelPlugin:
    """What ``accelerate launch`` was told in ``fsdp_config``."""
    return FullyShardedDataParallelPlugin()


def _launched(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
