"""Pairs and rankings of pictures as the trainer's data workers load and collate them for a reward model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmalign.data import RowTable, UnreadableImage, decode
from mmalign.training.task import TRAIN, RowKey
from mmalign.types import CANDIDATES, CHOSEN, REJECTED, PreferencePair, Ranking
from reward_models.pixels import Preprocess
from reward_models.tokens import ClipTokens, FolderTokens
from reward_models.training.labels import NOBODY, RowLabels

SIDES = (CHOSEN, REJECTED)


@dataclass(frozen=True)
class RewardRow:
    """One visit of a row: ``ids`` [tokens], ``pixels`` [k, 3, side, side], of a pair chosen and rejected.

    ``preference`` and ``margin`` of a pair, ``labels`` [k] of a ranking. ``user``: its number, -1 where it has none or
    nobody asks. ``parts`` [dimensions]: labels by dimension. ``unusable``: None where rows were checked beforehand;
    else "" or why the row counts for nothing.
    """

    key: RowKey
    sample_id: str
    ids: Tensor
    pixels: Tensor
    preference: float = 1.0
    margin: float | None = None
    labels: Tensor | None = None
    user: int = NOBODY
    parts: Tensor | None = None
    unusable: str | None = None


@dataclass(frozen=True)
class RewardBatch:
    """Joined rows: ``ids`` [batch, tokens], ``pixels`` [batch, k, 3, side, side], labels [batch] or [batch, n]."""

    keys: tuple[RowKey, ...]
    sample_ids: tuple[str, ...]
    ids: Tensor
    pixels: Tensor
    users: Tensor
    preference: Tensor
    margin: Tensor | None = None
    labels: Tensor | None = None
    parts: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> "RewardBatch":
        """The same batch on ``device``."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "RewardBatch":
        """The same batch in page-locked memory."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "RewardBatch":
        names = ("ids", "pixels", "users", "preference", "margin", "labels", "parts")
        changed = {name: None if getattr(self, name) is None else change(getattr(self, name)) for name in names}
        return replace(self, **changed, present={branch: change(mask) for branch, mask in self.present.items()})


class RewardRows:
    """Loads rows of ``tables`` (split -> rows). ``check``: rows to train on may hold pictures nobody looked at yet."""

    def __init__(
        self,
        tables: Mapping[str, RowTable],
        tokens: ClipTokens | FolderTokens,
        preprocess: Preprocess,
        *,
        labels: RowLabels | None = None,
        check: bool = False,
    ) -> None:
        self.tables, self.tokens, self.preprocess, self.check = tables, tokens, preprocess, check
        self.labels = RowLabels() if labels is None else labels

    def load(self, key: RowKey) -> RewardRow:
        """Decode and prepare one row. A checked row whose picture cannot be read is named and counts for nothing."""
        row = self.tables[key.split][key.index]
        assert isinstance(row, PreferencePair | Ranking)
        ids, side = self.tokens([row.prompt])[0], self.preprocess.size
        described = RewardRow(
            key,
            row.sample_id,
            ids,
            torch.zeros(len(row.images), 3, side, side),
            user=self.labels.user(row),
            parts=self.labels.parts(row),
        )
        if isinstance(row, PreferencePair):
            described = replace(described, preference=row.preference, margin=row.margin)
        else:
            described = replace(described, labels=torch.tensor(row.labels, dtype=torch.float32))
        checked = self.check and key.split == TRAIN
        try:
            pixels = self.preprocess.pictures([decode(image) for image in row.images])
        except UnreadableImage as error:
            if not checked:
                raise
            return replace(described, unusable=str(error))
        return replace(described, pixels=pixels, unusable="" if checked else None)


def collate(rows: Sequence[RewardRow]) -> RewardBatch:
    """Rows as one batch. A margin is there only if every row has one."""
    checked = any(row.unusable is not None for row in rows)
    present = torch.tensor([not row.unusable for row in rows])
    labels = _stacked([row.labels for row in rows])
    branches = SIDES if labels is None else (CANDIDATES,)
    return RewardBatch(
        keys=tuple(row.key for row in rows),
        sample_ids=tuple(row.sample_id for row in rows),
        ids=torch.stack([row.ids for row in rows]),
        pixels=torch.stack([row.pixels for row in rows]),
        users=torch.tensor([row.user for row in rows]),
        preference=torch.tensor([row.preference for row in rows]),
        margin=_stacked([None if row.margin is None else torch.tensor(row.margin) for row in rows]),
        labels=labels,
        parts=_stacked([row.parts for row in rows]),
        present=dict.fromkeys(branches, present) if checked else {},
        unusable={row.sample_id: row.unusable for row in rows if row.unusable},
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(there) if len(there) == len(tensors) else None
