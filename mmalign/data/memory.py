"""Rows that exist already - made by a program, not read from a file - as a table like any other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.data.table import RowTable, TableReport, hashed
from mmalign.types import ImageBytes, PreferencePair, Ranking, Row, RowKind, Unary

_KINDS: dict[type, RowKind] = {PreferencePair: "pair", Ranking: "ranking", Unary: "unary"}


def table_of(rows: Sequence[Row], *, source: str = "memory") -> RowTable:
    """``rows``, all of one type, as a table: to train on, split, or write with ``write_canonical``.

    ``source``: where they come from, for the report. ValueError for no rows, rows of several types, or sample ids that
    repeat. The fingerprint covers everything a row says and the bytes of its pictures.
    """
    if not rows:
        raise ValueError(f"{source}: there are no rows")
    unknown = next((row for row in rows if type(row) not in _KINDS), None)
    if unknown is not None:
        raise ValueError(
            f"{source}: {type(unknown).__name__} is no row of an image generator; "
            "mmalign.vlm_data.table_of takes VLMPair"
        )
    kinds: set[RowKind] = {_KINDS[type(row)] for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"{source}: a table holds rows of one kind, these are {', '.join(sorted(kinds))}")
    ids = [row.sample_id for row in rows]
    repeated = sorted({sample_id for sample_id in ids if ids.count(sample_id) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise ValueError(f"{source}: sample_id {repeated[0]!r} is used more than once")
    ties = sum(isinstance(row, PreferencePair) and row.is_tie for row in rows)
    soft = sum(isinstance(row, PreferencePair) and 0.5 < row.preference < 1 for row in rows)
    report = TableReport(source, (source,), len(rows), len(rows), ties=ties, ties_policy="soft", soft=soft)
    fingerprint = hashed(source, *(_mark(row) for row in rows))
    return RowTable(MemoryRows(tuple(rows)), range(len(rows)), report, fingerprint, kinds.pop())


@dataclass(frozen=True)
class MemoryRows:
    """Storage of a table whose rows are in memory."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Row:
        return self.rows[position]

    @property
    def prompts(self) -> list[str]:
        """Prompt of every row."""
        return [row.prompt for row in self.rows]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row."""
        return [row.sample_id for row in self.rows]

    @property
    def blocks(self) -> list[int]:
        """Every row is as easy to read as any other."""
        return list(range(len(self.rows)))


def _mark(row: Row) -> str:
    said = {name: value for name, value in vars(row).items() if not _is_picture(value)}
    pictures = [hashlib.sha256(image.read()).hexdigest() for image in row.images]
    return hashed(type(row).__name__, sorted(said.items(), key=lambda item: item[0]), *pictures)


def _is_picture(value: object) -> bool:
    return isinstance(value, ImageBytes) or (isinstance(value, tuple) and any(isinstance(x, ImageBytes) for x in value))
