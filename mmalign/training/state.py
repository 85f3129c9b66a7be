"""Everything that changes while a run trains, and its way into a checkpoint and back."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmalign.references import ChangingReference
from mmalign.training.averaging import WeightAverage
from mmalign.training.checkpoint import Checkpoint
from mmalign.training.compiling import compile_for_training
from mmalign.training.config import Config
from mmalign.training.early_stop import Best
from mmalign.training.guards import Watches
from mmalign.training.meter import Meter
from mmalign.training.optim import build_optimizer
from mmalign.training.processes import Processes
from mmalign.training.sharding import is_sharded, local, share_of, shares_of_state, whole
from mmalign.training.strategy import strategy_in_effect, use_gradient_checkpointing
from mmalign.training.task import Task
from mmalign.training.unusable import UnusableRows
from mmalign.training.zero import ZeroOptimizer


class RunState:
    """Weights, optimizer, moving average, objective's estimates, meter, best measurement, and the step number.

    ``module`` is what to train through (wrapped by DDP); ``policy`` the plain module inside it, or, with FSDP,
    both are the module whose parameters are spread over the processes. Random numbers and learning rates are
    functions of the step, so neither has a state here. What goes into a checkpoint is whole whatever the strategy, so
    any number of processes can go on with it.
    """

    def __init__(self, accelerator: Accelerator, config: Config, task: Task) -> None:
        self.accelerator, self.config, self.task = accelerator, config, task
        self.processes = Processes(accelerator)
        self.policy: nn.Module = task.policy
        self.sharded = is_sharded(self.policy)
        self.parameters = {name: value for name, value in self.policy.named_parameters() if value.requires_grad}
        _refuse_untrainable(config, self.parameters)
        if config.training.gradient_checkpointing:
            use_gradient_checkpointing(self.policy)
        if not self.sharded:
            self.policy.to(accelerator.device)  # before the optimizer, which looks at where its parameters are
        optimizer = build_optimizer(config.training, list(self.parameters.values()))
        prepared: Any
        self.zero: ZeroOptimizer | None = None
        if strategy_in_effect(config.training.strategy, self.processes.count) == "deepspeed":
            self.zero = ZeroOptimizer(self.policy, optimizer, config.training)
            prepared = self.zero.module, self.zero
        elif self.sharded:
            prepared = self.policy, accelerator.prepare_optimizer(optimizer)
        else:
            with warnings.catch_warnings():
                # torch 2.13 renames it to a setting that older versions and accelerate do not know.
                warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
                prepared = accelerator.prepare(self.policy, optimizer)
        self.module: nn.Module
        self.module, self.optimizer = prepared
        if config.training.compile:
            compile_for_training(self.policy, task.reference)
        self.average = WeightAverage(self.parameters, config.training.ema.decay) if config.training.ema else None
        self.meter = Meter(self.processes, bins=config.evaluation.timestep_bins)
        self.unusable = UnusableRows(config.data.max_corrupt, self.processes)
        self.best = Best.of(config.evaluation.early_stop) if config.evaluation.early_stop else None
        self.watches = Watches(config.training.guard)
        self.step = 0
        self.seconds = 0.0

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside, the policy is in eval mode, without gradients, and holds the moving average where there is one."""
        with torch.no_grad():
            self.module.eval()
            try:
                if self.average is None:
                    yield
                else:
                    with self.average.swapped_in():
                        yield
            finally:
                self.module.train()

    def whole_weights(self) -> dict[str, Tensor]:
        """The trained weights, on the main process; collective."""
        return whole(self.parameters, keep=self.processes.is_main)

    def whole_average(self) -> dict[str, Tensor] | None:
        """Their moving average where there is one, on the main process; collective."""
        return whole(self.average.weights(), keep=self.processes.is_main) if self.average else None

    def training_state(self) -> dict[str, Any]:
        """What goes beside the weights, complete on the main process; collective."""
        scaler, reference = self.accelerator.scaler, self.task.reference
        return {
            "optimizer": whole(self.optimizer.state_dict(), keep=self.processes.is_main),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "objective": self.task.objective.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "meter": self.meter.state_dict(),
            "reference": reference.state_dict() if isinstance(reference, ChangingReference) else None,
        }

    def refresh_reference(self) -> None:
        """After an optimizer step: let a reference that follows the policy do so."""
        if isinstance(self.task.reference, ChangingReference):
            self.task.reference.after_step(self.step, self.policy)

    def numbers(self) -> dict[str, Any]:
        """What goes into ``state.json``."""
        return {
            "seconds": self.seconds,
            "best": self.best.state_dict() if self.best else None,
            "unusable": self.unusable.state_dict(),
            "watches": self.watches.state_dict(),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Become the run that wrote ``checkpoint``."""
        self.load_weights(checkpoint.weights())
        training, device = checkpoint.training(), self.accelerator.device
        state = training["optimizer"]
        self.optimizer.load_state_dict(shares_of_state(state, self.optimizer) if self.sharded else state)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        self.task.objective.load_state_dict({key: value.to(device) for key, value in training["objective"].items()})
        average = checkpoint.average()
        if self.average is not None and average is not None:
            self.average.load(average, training["average"])
        if self.accelerator.is_main_process:
            self.meter.load_state_dict(training["meter"], device)
        if isinstance(self.task.reference, ChangingReference):
            self.task.reference.load_state_dict(training["reference"])
        if self.best is not None:
            self.best.load_state_dict(checkpoint.state["best"])
        self.unusable.load_state_dict(checkpoint.state["unusable"])
        self.watches.load_state_dict(checkpoint.state["watches"])
        self.step, self.seconds = checkpoint.step, float(checkpoint.state["seconds"])

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy saved weights into the trained parameters; ValueError where the names differ."""
        if weights.keys() != self.parameters.keys():
            missing, unknown = self.parameters.keys() - weights.keys(), weights.keys() - self.parameters.keys()
            raise ValueError(
                f"the checkpoint's weights are not this model's: missing {sorted(missing)[:3]}, unknown "
                f"{sorted(unknown)[:3]}; was model.lora or model.name changed?"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                local(parameter).copy_(local(share_of(weights[name], parameter)))
        if self.zero is not None:
            self.zero.weights_changed()


def _refuse_untrainable(config: Config, parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise ValueError("no parameter of the policy is trained (requires_grad is False everywhere)")
    half = [name for name, value in parameters.items() if value.dtype == torch.float16]
    if half:
        raise ValueError(
            f"{len(half)} trained parameters are float16 ({half[0]}, ...), in which updates vanish; use "
            f"model.dtype=float32 (given: {config.model.dtype}) with training.mixed_precision=fp16 or bf16"
        )
