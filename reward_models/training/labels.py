"""Who judged a row, and what was judged beside the overall preference: what heads for users and dimensions need."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmalign.data import RowTable
from mmalign.training.config import HeadConfig
from mmalign.training.task import TRAIN
from mmalign.types import AnyRow, PreferencePair
from reward_models.heads import OF_USERS

NOBODY = -1
NAMED = 5


@dataclass(frozen=True)
class RowLabels:
    """``users``: name -> number, of rows to train on; ``dimensions``: columns with labels by dimension."""

    users: Mapping[str, int] = field(default_factory=dict)
    dimensions: tuple[str, ...] = ()

    def user(self, row: AnyRow) -> int:
        """The user's number; NOBODY for one who has no row to train on."""
        return self.users.get(row.user_id, NOBODY) if row.user_id is not None else NOBODY

    def parts(self, row: AnyRow) -> Tensor | None:
        """[dimensions]: p(chosen is the better one), NaN where there is no label; None without dimensions."""
        if not self.dimensions:
            return None
        return torch.tensor([_judged(row, name) for name in self.dimensions], dtype=torch.float32)


def read_labels(tables: Mapping[str, RowTable], head: HeadConfig) -> RowLabels:
    """Goes through all rows once where the head needs it. ValueError that names rows without a user, labels outside
    [0, 1], and dimensions that no row to train on has a label for."""
    if head.kind in OF_USERS:
        _refuse_without_user(row for table in tables.values() for row in table)
        names = dict.fromkeys(str(row.user_id) for row in tables[TRAIN])
        if len(names) < 2:
            raise ValueError(
                f"reward.head.kind: {head.kind} learns how users differ, and there is one: {', '.join(names)}"
            )
        return RowLabels({name: number for number, name in enumerate(names)})
    labels = RowLabels(dimensions=tuple(head.dimensions) if head.kind == "multi" else ())
    if labels.dimensions:
        found = {split: [labels.parts(row) for row in table] for split, table in tables.items()}
        known = torch.stack([parts for parts in found[TRAIN] if parts is not None])
        counts = (~known.isnan()).sum(dim=0).tolist()
        without = [name for name, count in zip(labels.dimensions, counts, strict=True) if not count]
        if without:
            there = sorted({name for row in tables[TRAIN][:100] for name in getattr(row, "extras", {})} - {"swapped"})
            raise ValueError(
                f"reward.head.dimensions: no row has a label in {', '.join(without)}; columns of the data: "
                f"{', '.join(there) or 'none beside the usual ones'}"
            )
    return labels


def _refuse_without_user(rows: Iterable[AnyRow]) -> None:
    without = [row.sample_id for row in rows if row.user_id is None]
    if without:
        raise ValueError(
            f"{len(without)} rows have no user_id: {', '.join(without[:NAMED])}{', ...' if without[NAMED:] else ''}. "
            "A head for users needs to know who judged each row; add the column user_id, or use reward.head.kind=cosine"
        )


def _judged(row: AnyRow, name: str) -> float:
    """p(chosen is the better one in dimension ``name``); the column speaks of the row's first picture."""
    assert isinstance(row, PreferencePair)
    value = row.extras.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, str) or not 0 <= float(value) <= 1:
        raise ValueError(f"{row.sample_id}: {name} = {value!r} must be a probability in [0, 1], or nothing")
    return 1 - float(value) if row.extras.get("swapped") else float(value)
