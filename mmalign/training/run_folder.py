"""What a run writes into its folder, beside the log: description, checkpoints, pictures, trackers, trained model."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mmalign.training.checkpoint import Checkpoint, CheckpointStore
from mmalign.training.config import Config
from mmalign.training.curriculum import CurriculumOrder
from mmalign.training.loading import dump_config
from mmalign.training.order import TrainingOrder
from mmalign.training.resume import refuse_other_run
from mmalign.training.sharding import is_sharded, make_whole
from mmalign.training.state import RunState
from mmalign.training.task import HELD_OUT, TRAIN, MeasuresPictures, Task
from mmalign.training.versions import versions


class RunFolder:
    """``config.yaml``, ``versions.json``, ``log.jsonl``, ``checkpoints/``, ``pictures/``, ``aligned/``.

    Only the main process writes; methods that several processes have to enter together say so.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        task: Task,
        *,
        command: str,
        accelerator: Accelerator,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.config, self.task = folder, config, task
        self.accelerator, self._command = accelerator, command
        self.log = folder / "log.jsonl"
        self.checkpoints = CheckpointStore(folder / "checkpoints", keep=config.training.keep_checkpoints, say=say)

    def refuse_used(self) -> None:
        """ValueError where the folder holds checkpoints of an earlier run."""
        newest = self.checkpoints.newest()
        if newest is not None:
            raise ValueError(f"{newest.folder} is of an earlier run: go on with --resume, or give another output")

    def checkpoint_to_resume(self, order: TrainingOrder | CurriculumOrder) -> Checkpoint:
        """The newest complete checkpoint; ValueError where there is none or where it is of another run."""
        checkpoint = self.checkpoints.newest()
        self._refuse_private_disks(checkpoint.step if checkpoint else None)
        if checkpoint is None:
            raise ValueError(
                f"there is no checkpoint in {self.checkpoints.root} to resume from; "
                "start afresh with another output, or delete the folder"
            )
        refuse_other_run(
            checkpoint,
            self.config,
            rows_per_step=order.rows_per_step,
            rows=self._rows,
            reference=self._reference,
            exported=(self.folder / "aligned").exists(),
        )
        return checkpoint

    def write_description(self, state: RunState) -> None:
        """``config.yaml`` and ``versions.json``; starts the trackers; collective."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
            (self.folder / "versions.json").write_text(json.dumps(self._versions, indent=1), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        if state.sharded and state.best is not None:  # at the end, every process loads its share of the best weights
            self._refuse_private_disks((self.folder / "config.yaml").is_file())
        if self.config.training.trackers:
            names = {tracker: {"name": self.folder.resolve().name} for tracker in ("wandb", "trackio")}
            self.accelerator.init_trackers(
                "mmalign", config=_flat(self.config.model_dump(mode="json")), init_kwargs=names
            )

    def track(self, line: Mapping[str, Any]) -> None:
        """Hand a line of the log to the trackers."""
        if not self.config.training.trackers:
            return
        prefix = f"{line['split']}/" if "split" in line else ""
        numbers = {prefix + key: value for key, value in _flat(line).items() if isinstance(value, int | float)}
        numbers.pop(f"{prefix}step")
        self.accelerator.log(numbers, step=line["step"])

    def draw(self, step: int, policy: nn.Module) -> dict[str, float]:
        """``pictures/step_000050.png``, and what the task measures of it.

        The other processes wait, or draw the same where they hold a share of the policy.
        """
        measures: dict[str, float] = {}
        if self.accelerator.is_main_process or is_sharded(policy):
            picture = self.task.pictures(policy)
            if picture is not None and self.accelerator.is_main_process:
                (self.folder / "pictures").mkdir(exist_ok=True)
                picture.save(self.folder / "pictures" / f"step_{step:06d}.png")
                measures = dict(self.task.picture_measures()) if isinstance(self.task, MeasuresPictures) else {}
        self.accelerator.wait_for_everyone()
        return measures

    def hash_reference(self) -> None:
        """Take the reference's fingerprint now: once it is sharded, no process has the bytes that are hashed."""
        if self.accelerator.is_main_process:
            _ = self._reference

    def save(self, state: RunState, rows_per_step: int) -> None:
        """A checkpoint of this step, unless there is one; every process enters."""
        weights, average, training = state.whole_weights(), state.whole_average(), state.training_state()
        if self.accelerator.is_main_process and self.checkpoints.at(state.step) is None:
            self.checkpoints.save(
                state.step,
                weights=weights,
                average=average,
                training=training,
                state={
                    **state.numbers(),
                    "config": self.config.model_dump(mode="json"),
                    "versions": self._versions,
                    "rows_per_step": rows_per_step,
                    "rows": self._rows,
                    "reference": self._reference,
                },
            )
            self.checkpoints.prune(best=state.best.step if state.best else None)
        self.accelerator.wait_for_everyone()

    def export(
        self,
        state: RunState,
        history: Sequence[Mapping[str, Any]],
        held_out: Sequence[Mapping[str, Any]],
        *,
        stopped_early: bool,
    ) -> None:
        """``aligned/``: the best checkpoint where there is an early stop, the averaged weights where there are any."""
        exported = self._choose_weights(state)
        policy = self._plain_policy(state)
        if self.accelerator.is_main_process:
            results = {
                "steps": state.step,
                "exported_step": exported,
                "stopped_early": stopped_early,
                "seconds": state.seconds,
                "training": dict(history[-1]) if history else {},
                "held_out": next((dict(line) for line in held_out if line["step"] == exported), {}),
            }
            # A run that was extended has an older export here; a mixture of both would be worse than none.
            shutil.rmtree(self.folder / "aligned", ignore_errors=True)
            self.task.export(policy, self.folder / "aligned", results)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()

    def _plain_policy(self, state: RunState) -> nn.Module:
        """The policy without DDP, autocast around forward, and, on the main process, without shards."""
        if state.sharded:
            return make_whole(state.policy, keep=self.accelerator.is_main_process)
        if state.zero is not None:
            state.policy.__dict__.pop("forward", None)  # autocast
            return state.policy
        return self.accelerator.unwrap_model(state.module, keep_fp32_wrapper=False)

    def _refuse_private_disks(self, found: object) -> None:
        """ValueError where another process finds something else in the folder; collective."""
        seen = gather_object([found]) if self.accelerator.num_processes > 1 else []
        if len(set(seen)) > 1:
            raise ValueError(
                f"the processes find different things in {self.folder} ({', '.join(map(str, seen))}); put output on a "
                "file system that all machines share"
            )

    def _choose_weights(self, state: RunState) -> int:
        """Put the weights to export into the policy, every process its share; the step they are of."""
        best = self.checkpoints.at(state.best.step) if state.best and state.best.step else None
        if best is not None:
            state.load_weights(best.average() or best.weights())
            return best.step
        if state.average is not None:
            state.average.copy_to_parameters()
        return state.step

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {split: self.task.size(split) for split in (TRAIN, HELD_OUT)}

    @cached_property
    def _reference(self) -> str | None:
        """Hashing a large model takes seconds, so once, and only where a checkpoint is read or written."""
        return self.task.reference.fingerprint() if self.task.reference is not None else None

    @cached_property
    def _versions(self) -> dict[str, Any]:
        return versions(
            self.accelerator.device,
            seed=self.config.training.seed,
            processes=self.accelerator.num_processes,
            command=self._command,
        )


def _flat(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested plain values by dotted key, as trackers take them."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    flat: dict[str, int | float | str | bool] = {}
    for key, value in pairs:
        if isinstance(value, Mapping | list | tuple):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
