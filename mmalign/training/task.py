"""What the trainer needs to know about a modality: nothing beyond this protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmalign.losses import Objective
from mmalign.references import Reference
from mmalign.types import Scores

TRAIN = "train"
HELD_OUT = "held_out"


@dataclass(frozen=True)
class RowKey:
    """One visit of one row: which row, and the seed of everything random about this visit.

    The seed depends on the run's seed, the split, the epoch and the row alone. So what a row's noise, timestep, crop or
    caption dropout is does not depend on batch size, accumulation, number of processes, workers, or on interruptions.
    ``epoch`` counts visits of the row from 0; held-out rows are always at 0.
    """

    split: str
    index: int
    seed: int
    epoch: int = 0

    def generator(self, stream: str) -> torch.Generator:
        """A CPU generator for one use of randomness (``pixels``, ``noise``, ...), independent of the other streams."""
        salt = int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "big")
        return torch.Generator().manual_seed((self.seed ^ salt) & (2**63 - 1))


class CollatedBatch(Protocol):
    """Rows put together on the CPU. ``present``: branch -> [batch] bool where some rows lack a branch."""

    @property
    def keys(self) -> tuple[RowKey, ...]: ...
    @property
    def sample_ids(self) -> tuple[str, ...]: ...
    @property
    def present(self) -> dict[str, Tensor]: ...

    def to(self, device: torch.device) -> "CollatedBatch":
        """The same batch on a device."""
        ...


@runtime_checkable
class MeasuresPictures(Protocol):
    """A task that can tell in numbers what its pictures are like."""

    def picture_measures(self) -> Mapping[str, float]:
        """Of what :meth:`Task.pictures` drew last, by name: those that a guard names are watched."""
        ...


class Task(Protocol):
    """One model family with its data: the trainer's only view of a modality.

    A task whose rows cannot be mixed freely in a step also has ``layout(split)`` (see ``training.order.HasLayout``).
    """

    @property
    def policy(self) -> nn.Module: ...
    @property
    def reference(self) -> Reference | None: ...
    @property
    def objective(self) -> Objective: ...

    def size(self, split: str) -> int:
        """Number of rows of ``train`` or ``held_out``."""
        ...

    def load(self, key: RowKey) -> Any:
        """Decode one row (in a data worker). Errors name the row."""
        ...

    def collate(self, items: Sequence[Any]) -> CollatedBatch:
        """Put loaded rows together (in a data worker)."""
        ...

    def prepare(self, device: torch.device) -> None:
        """Move what is not the policy (reference copy, encoders) to the device; called once, before the first step."""
        ...

    def score(self, policy: nn.Module, batch: Any) -> Scores:
        """Scores of every branch the objective names, for what :meth:`collate` made; ``policy`` may be wrapped."""
        ...

    def pictures(self, policy: nn.Module) -> Image | None:
        """One grid on fixed prompts and seeds, or None where the configuration asks for none."""
        ...

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """Write the trained weights in the family's standard format."""
        ...
