"""Which rows an optimizer step sees: a function of the seed and the step number, and of nothing else.

The epochs' permutations, one after another without end, are one long list of rows; step s takes rows [s G, (s + 1) G)
of it, where G = batch_size * accumulation * processes. So however G is split, a step sees the same rows; and to resume
is to go on at a step number.
"""

import hashlib
from collections.abc import Iterator

import torch

from mmalign.training.task import HELD_OUT, TRAIN, RowKey


def stable_hash(*parts: object) -> int:
    """63 bits from the parts' text, the same in every process and every Python."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def held_out_keys(seed: int, size: int, batch_size: int, process: int = 0, processes: int = 1) -> list[list[RowKey]]:
    """Batches of held-out rows for one process, in order, each row with the same seed at every evaluation."""
    keys = [RowKey(HELD_OUT, index, stable_hash(seed, HELD_OUT, index)) for index in range(size)]
    batches = [keys[start : start + batch_size] for start in range(0, size, batch_size)]
    return batches[process::processes]


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
    ) -> None:
        if size < 1:
            raise ValueError("there are no training rows; see data.path, data.ties and data.held_out")
        self.size, self.seed = size, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.process, self.processes = process, processes
        self.start, self.stop = start, stop
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    @property
    def rows_per_step(self) -> int:
        """The global batch G."""
        return self.batch_size * self.accumulation * self.processes

    def __iter__(self) -> Iterator[list[RowKey]]:
        for step in range(self.start, self.stop):
            yield from self.micro_batches(step)

    def micro_batches(self, step: int) -> list[list[RowKey]]:
        """This process's rows of ``step``; neighbouring processes take neighbouring rows."""
        first = step * self.rows_per_step
        deals = [
            first + (micro * self.processes + self.process) * self.batch_size for micro in range(self.accumulation)
        ]
        return [[self._key(position) for position in range(deal, deal + self.batch_size)] for deal in deals]

    def _key(self, position: int) -> RowKey:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stable_hash(self.seed, TRAIN, epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.size, generator=generator)
        index = int(self._permutation[place])
        return RowKey(TRAIN, index, stable_hash(self.seed, TRAIN, epoch, index))
