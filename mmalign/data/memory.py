"""Rows that exist already - made by a program, not read from a file - as a table like any other."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from mmalign.data.table import R, RowTable, TableReport, hashed
from mmalign.types import AnyRow, ImageBytes, PreferencePair, Ranking, Row, RowKind, Unary, VLMPair

_KINDS: dict[type, RowKind] = {PreferencePair: "pair", Ranking: "ranking", Unary: "unary"}


def table_of(rows: Sequence[Row], *, source: str = "memory") -> RowTable:
    """``rows``, all of one type, as a table: to train on, split, or write with ``write_canonical``.

    ``source``: where they come from, for the report. ValueError for no rows, rows of several types, or sample ids that
    repeat. The fingerprint covers everything a row says and the bytes of its pictures.
    """
    unknown = next((row for row in rows if type(row) not in _KINDS), None)
    if unknown is not None:
        raise ValueError(
            f"{source}: {type(unknown).__name__} is no row of an image generator; "
            "mmalign.vlm_data.table_of takes VLMPair"
        )
    kinds: set[RowKind] = {_KINDS[type(row)] for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"{source}: a table holds rows of one kind, these are {', '.join(sorted(kinds))}")
    return memory_table(MemoryRows(tuple(rows)), source, *kinds, mark=_mark)


@dataclass(frozen=True)
class MemoryRows(Generic[R]):
    """Storage of a table whose rows are in memory."""

    rows: tuple[R, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> R:
        return self.rows[position]

    @property
    def prompts(self) -> list[str]:
        """Prompt of every row; a conversation as text."""
        return [row.prompt_text if isinstance(row, VLMPair) else row.prompt for row in self.rows]

    @property
    def groups(self) -> list[str]:
        """What rows share that a split must not tear apart: of a conversation the first picture, else the prompt."""
        return [_group(row) if isinstance(row, VLMPair) else row.prompt for row in self.rows]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row."""
        return [row.sample_id for row in self.rows]

    @property
    def blocks(self) -> list[int]:
        """Every row is as easy to read as any other."""
        return list(range(len(self.rows)))


def memory_table(
    storage: MemoryRows[R], source: str, kind: RowKind | None = None, *, mark: Callable[[R], str]
) -> RowTable[R]:
    """The table of ``storage``; ``mark``: what a row adds to the fingerprint. ValueError for none or repeated ids."""
    rows: Sequence[AnyRow] = storage.rows
    if not rows or kind is None:
        raise ValueError(f"{source}: there are no rows")
    seen: set[str] = set()
    for row in rows:
        if row.sample_id in seen:
            raise ValueError(f"{source}: sample_id {row.sample_id!r} is used more than once")
        seen.add(row.sample_id)
    pairs = [row for row in rows if isinstance(row, PreferencePair | VLMPair)]
    ties, soft = sum(row.is_tie for row in pairs), sum(0.5 < row.preference < 1 for row in pairs)
    report = TableReport(source, (source,), len(rows), len(rows), ties=ties, ties_policy="soft", soft=soft)
    return RowTable(storage, range(len(rows)), report, hashed(source, *map(mark, storage.rows)), kind)


def _group(row: VLMPair) -> str:
    pictures = (*row.images_of("chosen"), *(frame for video in row.videos_of("chosen") for frame in video.frames))
    if pictures:
        return hashlib.sha256(pictures[0].read()).hexdigest()
    paths = [str(video.path) for video in row.videos_of("chosen")]
    return paths[0] if paths else row.prompt_text


def _mark(row: Row) -> str:
    said = {name: value for name, value in vars(row).items() if not _is_picture(value)}
    pictures = [hashlib.sha256(image.read()).hexdigest() for image in row.images]
    return hashed(type(row).__name__, sorted(said.items(), key=lambda item: item[0]), *pictures)


def _is_picture(value: object) -> bool:
    return isinstance(value, ImageBytes) or (isinstance(value, tuple) and any(isinstance(x, ImageBytes) for x in value))
