"""Which rows an optimizer step sees: a function of the seed and the step number, and of nothing else.

The epochs' permutations, one after another without end, are one long list of rows; step s takes rows [s G, (s + 1) G)
of it, where G = batch_size * accumulation * processes. So however G is split, a step sees the same rows; and to resume
is to go on at a step number.

Where rows come in groups (pictures of one shape, rankings of one length), a step takes rows of one group only. Every
group then has a list of its own, made of the same permutations, and a step is due as soon as the next G rows of its
group have come by. Rows that do not fill a step at the end of an epoch are not dropped: they begin the group's next
step, in a later epoch. So every row comes once per epoch of its group, up to the fewer than G rows that wait.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from mmalign.training.task import HELD_OUT, TRAIN, RowKey

Numbers = NDArray[np.int64]
EPOCHS_KEPT = 2  # a step at the turn of an epoch needs both


def stable_hash(*parts: object) -> int:
    """63 bits from the parts' text, the same in every process and every Python."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Layout:
    """What the order has to know about the rows of a split; each array is [rows].

    ``groups``: the rows of an optimizer step are of one group. ``blocks``: the stretch of storage that a row lies in;
    given, an epoch permutes blocks, and rows only among ``window`` successive blocks, so that storage is read nearly in
    sequence. Rows of one window are then seen close together in every epoch: the larger the window, the nearer to a
    free shuffle, and the more is held in memory.
    """

    groups: NDArray[Any] | None = None
    blocks: NDArray[Any] | None = None
    window: int = 1


@runtime_checkable
class HasLayout(Protocol):
    """A task whose rows cannot be mixed freely."""

    def layout(self, split: str) -> Layout:
        """How the rows of ``split`` may be mixed."""
        ...


def layout_of(task: object, split: str) -> Layout:
    """The task's layout, or that of rows that can be mixed freely."""
    return task.layout(split) if isinstance(task, HasLayout) else Layout()


def held_out_keys(
    seed: int,
    size: int,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    groups: NDArray[Any] | None = None,
) -> list[list[RowKey]]:
    """Batches of held-out rows for one process, group by group, each row with the same seed at every evaluation."""
    members = _by_group(groups) if groups is not None else [np.arange(size)]
    batches = [rows[start : start + batch_size] for rows in members for start in range(0, len(rows), batch_size)]
    return [
        [RowKey(HELD_OUT, index, stable_hash(seed, HELD_OUT, index)) for index in batch.tolist()]
        for batch in batches[process::processes]
    ]


class TrainingOrder:
    """Micro-batches of one process: ``accumulation`` lists of ``batch_size`` keys for every optimizer step.

    ``size``: rows of the training split. Iterating gives the micro-batches from step ``start`` up to step ``stop``.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        batch_size: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
        start: int = 0,
        stop: int = 0,
        layout: Layout | None = None,
    ) -> None:
        if size < 1:
            raise ValueError("there are no training rows; see data.path, data.ties and data.held_out")
        self.batch_size, self.accumulation = batch_size, accumulation
        self.process, self.processes = process, processes
        self.start, self.stop = start, stop
        self.size, self.seed, self.layout = size, seed, layout or Layout()

    @property
    def rows_per_step(self) -> int:
        """The global batch G."""
        return self.batch_size * self.accumulation * self.processes

    @cached_property
    def _rows(self) -> "_Epochs":
        return _Epochs(self.size, self.seed, self.layout, self.rows_per_step)

    def __iter__(self) -> Iterator[list[RowKey]]:
        for step in range(self.start, self.stop):
            yield from self.micro_batches(step)

    def micro_batches(self, step: int) -> list[list[RowKey]]:
        """This process's rows of ``step``; neighbouring processes take neighbouring rows."""
        visits = self._rows.of_step(step)
        deals = [(micro * self.processes + self.process) * self.batch_size for micro in range(self.accumulation)]
        return [[self._key(*visit) for visit in visits[deal : deal + self.batch_size]] for deal in deals]

    def _key(self, epoch: int, index: int) -> RowKey:
        return RowKey(TRAIN, index, stable_hash(self.seed, TRAIN, epoch, index), epoch)


class _Epochs:
    """The groups' endless lists of rows, and which group each step belongs to. Memory: a few numbers per row."""

    def __init__(self, size: int, seed: int, layout: Layout, rows_per_step: int) -> None:
        self._size, self._seed, self._layout, self._rows_per_step = size, seed, layout, rows_per_step
        self._groups = None if layout.groups is None else np.unique(layout.groups, return_inverse=True)[1]
        self._sizes = [size] if self._groups is None else np.bincount(self._groups).tolist()
        self._kept: OrderedDict[int, tuple[list[Numbers], Numbers]] = OrderedDict()

    def of_step(self, step: int) -> list[tuple[int, int]]:
        """(epoch of the group, row) of the G visits of ``step``."""
        epoch = self._epoch_of(step)
        group, of_group = self._epoch(epoch)[1][step - self._steps_before(epoch)].tolist()
        size, first = self._sizes[group], of_group * self._rows_per_step
        visits = []
        for position in range(first, first + self._rows_per_step):
            visited, place = divmod(position, size)
            visits.append((visited, int(self._epoch(visited)[0][group][place])))
        return visits

    def _steps_before(self, epoch: int) -> int:
        """Steps that are due before ``epoch`` begins."""
        return sum(epoch * size // self._rows_per_step for size in self._sizes)

    def _epoch_of(self, step: int) -> int:
        """The epoch in which ``step`` becomes due."""
        epoch = step * self._rows_per_step // self._size  # not too late: rounding down only ever delays a step
        while self._steps_before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _epoch(self, epoch: int) -> tuple[list[Numbers], Numbers]:
        """The rows of every group in this epoch's order, and [group, its step] of the steps that become due in it."""
        if epoch not in self._kept:
            self._kept[epoch] = self._make(epoch)
            if len(self._kept) > EPOCHS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(epoch)
        return self._kept[epoch]

    def _make(self, epoch: int) -> tuple[list[Numbers], Numbers]:
        order = self._permutation(epoch)
        places = [np.arange(self._size)] if self._groups is None else _by_group(self._groups[order])
        ends, due = [], []
        for group, size in enumerate(self._sizes):
            steps = np.arange(*(turn * size // self._rows_per_step for turn in (epoch, epoch + 1)))
            ends.append(places[group][(steps + 1) * self._rows_per_step - 1 - epoch * size])
            due.append(np.stack([np.full_like(steps, group), steps], axis=1))
        in_turn = np.concatenate(due)[np.argsort(np.concatenate(ends))]
        return [order[of_group] for of_group in places], in_turn

    def _permutation(self, epoch: int) -> Numbers:
        generator = torch.Generator().manual_seed(stable_hash(self._seed, TRAIN, epoch))
        order = torch.randperm(self._size, generator=generator).numpy()
        if self._layout.blocks is None:
            return order
        names, blocks = np.unique(self._layout.blocks, return_inverse=True)
        turn = torch.randperm(len(names), generator=generator).numpy()  # when each block comes
        window = turn[blocks] // self._layout.window
        return order[np.argsort(window[order], kind="stable")]


def _by_group(groups: NDArray[Any]) -> Sequence[Numbers]:
    """The places of every group, in their order, from the lowest group on."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
