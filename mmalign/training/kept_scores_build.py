"""Computing a run's reference scores ahead of it: by one process or several, which may be killed and started again."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.progress import Progress, TaskID
from torch import nn

from mmalign.caches import Claims
from mmalign.data.verification import progress_bar
from mmalign.references import CachedReference
from mmalign.training.config import Config
from mmalign.training.curriculum import training_order
from mmalign.training.image_cache_rows import SECONDS_BETWEEN_LOOKS, rotated
from mmalign.training.kept_scores import visits
from mmalign.training.order import held_out_keys, layout_of
from mmalign.training.processes import processes_started
from mmalign.training.rows import load_batches
from mmalign.training.strategy import start_accelerator, strategy_in_effect
from mmalign.training.task import HELD_OUT, CollatedBatch, RowKey, Task

CLAIMS = "claims.lock"
LARGEST_PART, PARTS = 64, 64


class KeepsScores(Task, Protocol):
    """A task whose reference's scores can be computed without the policy's."""

    def keep_reference_scores(self, policy: nn.Module, batch: Any) -> None:
        """Score ``batch`` with the reference alone and keep what it gives."""
        ...


def build_scores(config: Config, task: KeepsScores) -> tuple[int, int]:
    """Compute every reference score that training with ``config`` will ask for; (computed here, needed in all).

    The micro-batches are those of as many processes as this was started with. ValueError where training would compute
    scores in another way than here.
    """
    refuse_other_ways(config)
    accelerator = start_accelerator(config, Path(config.output))
    task.policy.to(accelerator.device).train()
    task.prepare(accelerator.device)
    batches = micro_batches(config, task)
    return _Builder(config, task, accelerator, batches).build(), len(batches)


def refuse_other_ways(config: Config) -> None:
    """ValueError where training will not run the reference as a plain module."""
    strategy = strategy_in_effect(config.training.strategy, processes_started())
    if strategy in ("fsdp", "deepspeed"):
        raise ValueError(
            f"scores are computed ahead by whole models, not with training.strategy: {strategy}; start this in one "
            "process or with ddp, or let training fill the cache"
        )
    if config.training.compile:
        raise ValueError(
            "training.compile: a compiled model rounds differently from what is run here; leave it out, or let "
            "training fill the cache"
        )


def micro_batches(config: Config, task: Task) -> list[list[RowKey]]:
    """Every batch whose reference scores a run asks for, by all of its processes: training, then held-out rows."""
    training, processes = config.training, processes_started()
    orders = [training_order(task, training, process=process, processes=processes) for process in range(processes)]
    found = [batch for step in range(training.steps) for order in orders for batch in order.micro_batches(step)]
    if config.evaluation.every is not None:
        size, groups = task.size(HELD_OUT), layout_of(task, HELD_OUT).groups
        found += held_out_keys(training.seed, size, training.batch_size, groups=groups)
    return found


class _Builder:
    """Parts of consecutive batches, each claimed by one process at a time; a batch that is kept is not made again."""

    def __init__(
        self, config: Config, task: KeepsScores, accelerator: Accelerator, batches: Sequence[list[RowKey]]
    ) -> None:
        assert isinstance(task.reference, CachedReference)
        self._task, self._reference, self._accelerator = task, task.reference, accelerator
        self._workers, self._batches, self._computed = config.training.workers, batches, 0
        size = max(1, min(LARGEST_PART, -(-len(batches) // PARTS)))
        self._parts = [range(start, min(start + size, len(batches))) for start in range(0, len(batches), size)]
        # Each process begins elsewhere, so that claims rarely meet.
        self._share = int(os.environ.get("RANK", "0")) / processes_started()

    def build(self) -> int:
        """Return when all scores are there, from this process or from others at work; how many were made here."""
        with progress_bar(quiet=bool(self._share)) as progress, Claims(self._reference.folder / CLAIMS) as claims:
            shown = progress.add_task("reference scores", total=len(self._batches))
            while left := [part for part in range(len(self._parts)) if self._missing(part)]:
                if not self._work(left, claims, progress, shown):
                    time.sleep(SECONDS_BETWEEN_LOOKS)  # others are at the rest
                    self._reference.refresh()
        return self._computed

    def _missing(self, part: int) -> list[list[RowKey]]:
        keys = (self._batches[number] for number in self._parts[part])
        return [batch for batch in keys if not self._reference.holds(visits(batch))]

    def _work(self, left: Sequence[int], claims: Claims, progress: Progress, shown: TaskID) -> bool:
        """Claim and compute what is left, part by part; whether there was anything to claim."""
        claimed = False
        for part in rotated(left, self._share):
            if not claims.take(part):
                continue
            claimed = True
            self._reference.refresh()  # another process may have finished it since
            self._compute(self._missing(part))
            claims.free(part)
            progress.update(shown, completed=len(self._reference))
        return claimed

    def _compute(self, keys: list[list[RowKey]]) -> None:
        for batch in self._loaded(keys):
            with torch.no_grad(), self._accelerator.autocast():
                self._task.keep_reference_scores(self._task.policy, batch.to(self._accelerator.device))
            self._computed += 1

    def _loaded(self, keys: list[list[RowKey]]) -> Iterator[CollatedBatch]:
        return load_batches(self._task, keys, workers=self._workers, device=self._accelerator.device)
