"""VLM rows that exist already - made by a program, not read from a file - as a table like any other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.data.table import RowTable, TableReport, hashed
from mmalign.types import VLMPair
from mmalign.vlm_data.canonical import columns_of


def table_of(rows: Sequence[VLMPair], *, source: str = "memory") -> RowTable[VLMPair]:
    """``rows`` as a table: to train on, split, or write.

    ``source``: where they come from, for the report. ValueError for no rows, or sample ids that repeat. The fingerprint
    covers everything a row says and the bytes of its pictures.
    """
    if not rows:
        raise ValueError(f"{source}: there are no rows")
    seen: set[str] = set()
    for row in rows:
        if not isinstance(row, VLMPair):
            raise ValueError(f"{source}: {type(row).__name__} is no VLMPair; mmalign.data.table_of takes other rows")
        if row.sample_id in seen:
            raise ValueError(f"{source}: sample_id {row.sample_id!r} is used more than once")
        seen.add(row.sample_id)
    ties, soft = sum(row.is_tie for row in rows), sum(0.5 < row.preference < 1 for row in rows)
    report = TableReport(source, (source,), len(rows), len(rows), ties=ties, ties_policy="soft", soft=soft)
    fingerprint = hashed(source, *(_mark(row) for row in rows))
    return RowTable(MemoryRows(tuple(rows)), range(len(rows)), report, fingerprint, "vlm_pair")


@dataclass(frozen=True)
class MemoryRows:
    """Storage of a table whose rows are in memory."""

    rows: tuple[VLMPair, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> VLMPair:
        return self.rows[position]

    @property
    def prompts(self) -> list[str]:
        """Conversation of every row as text."""
        return [row.prompt_text for row in self.rows]

    @property
    def groups(self) -> list[str]:
        """What rows about the same picture share: its digest, or the prompt where there is none."""
        return [_group(row) for row in self.rows]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row."""
        return [row.sample_id for row in self.rows]

    @property
    def blocks(self) -> list[int]:
        """Every row is as easy to read as any other."""
        return list(range(len(self.rows)))


def _group(row: VLMPair) -> str:
    pictures = (*row.images_of("chosen"), *(frame for video in row.videos_of("chosen") for frame in video.frames))
    if pictures:
        return hashlib.sha256(pictures[0].read()).hexdigest()
    paths = [str(video.path) for video in row.videos_of("chosen")]
    return paths[0] if paths else row.prompt_text


def _mark(row: VLMPair) -> str:
    columns = columns_of(row, Path())
    columns.pop("images")
    return hashed(sorted(columns.items()))
