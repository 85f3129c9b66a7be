"""Pairs of pictures as the trainer's data workers load and collate them for a reward model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmalign.data import RowTable, UnreadableImage, decode
from mmalign.training.task import TRAIN, RowKey
from mmalign.types import CHOSEN, REJECTED, PreferencePair
from reward_models.pixels import Preprocess
from reward_models.tokens import ClipTokens, FolderTokens

SIDES = (CHOSEN, REJECTED)


@dataclass(frozen=True)
class RewardRow:
    """One visit of a pair: ``ids`` [tokens], ``pixels`` [2, 3, side, side] of chosen and rejected.

    ``unusable``: None where rows were checked beforehand; else "" or why the row counts for nothing.
    """

    key: RowKey
    sample_id: str
    ids: Tensor
    pixels: Tensor
    preference: float
    margin: float | None
    unusable: str | None = None


@dataclass(frozen=True)
class RewardBatch:
    """Rows put together: ``ids`` [batch, tokens], ``pixels`` [batch, 2, 3, side, side], labels [batch]."""

    keys: tuple[RowKey, ...]
    sample_ids: tuple[str, ...]
    ids: Tensor
    pixels: Tensor
    preference: Tensor
    margin: Tensor | None
    present: dict[str, Tensor] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> "RewardBatch":
        """The same batch on ``device``."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "RewardBatch":
        """The same batch in page-locked memory."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "RewardBatch":
        return replace(
            self,
            ids=change(self.ids),
            pixels=change(self.pixels),
            preference=change(self.preference),
            margin=None if self.margin is None else change(self.margin),
            present={branch: change(mask) for branch, mask in self.present.items()},
        )


class RewardRows:
    """Loads pairs of ``tables`` (split -> rows). ``check``: rows to train on may hold pictures nobody looked at yet."""

    def __init__(
        self,
        tables: Mapping[str, RowTable],
        tokens: ClipTokens | FolderTokens,
        preprocess: Preprocess,
        *,
        check: bool = False,
    ) -> None:
        self.tables, self.tokens, self.preprocess, self.check = tables, tokens, preprocess, check

    def load(self, key: RowKey) -> RewardRow:
        """Decode and prepare one pair. A checked row whose picture cannot be read is named and counts for nothing."""
        row = self.tables[key.split][key.index]
        assert isinstance(row, PreferencePair)
        ids, side = self.tokens([row.prompt])[0], self.preprocess.size
        described = RewardRow(
            key, row.sample_id, ids, torch.zeros(2, 3, side, side), row.preference, row.margin, unusable=None
        )
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
    margins = [row.margin for row in rows]
    checked = any(row.unusable is not None for row in rows)
    present = torch.tensor([not row.unusable for row in rows])
    return RewardBatch(
        keys=tuple(row.key for row in rows),
        sample_ids=tuple(row.sample_id for row in rows),
        ids=torch.stack([row.ids for row in rows]),
        pixels=torch.stack([row.pixels for row in rows]),
        preference=torch.tensor([row.preference for row in rows]),
        margin=None if any(margin is None for margin in margins) else torch.tensor(margins),
        present=dict.fromkeys(SIDES, present) if checked else {},
        unusable={row.sample_id: row.unusable for row in rows if row.unusable},
    )
