"""Parquet shards of records: everything but pictures is read once to index, and whole rows when they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.data.parquet import microseconds, reader_of
from mmalign.data.shards import Shard, row_groups

BATCH = 256  # rows that are Python objects at a time while the files are indexed


class ParquetRecords:
    """Rows of parquet ``shards``; ``heavy`` columns are left out while the files are indexed.

    Of a column that holds structs with ``bytes``, the other fields are read to index (their number and paths).
    """

    columns: Mapping[str, pa.DataType] = {"file": pa.int32(), "row": pa.int64()}

    def __init__(self, shards: Sequence[Shard], heavy: Sequence[str] = (), keep: int = 2) -> None:
        self.shards, self.heavy = tuple(shards), frozenset(heavy)
        self.files = tuple(shard.name for shard in shards)
        names = list(dict.fromkeys(name for shard in shards for name in shard.schema.names))
        self.reader = reader_of(shards, names, keep)

    @property
    def marks(self) -> tuple[object, ...]:
        """What changes with the files."""
        return tuple(mark for shard in self.shards for mark in (shard.name, *shard.mark))

    def where(self, place: Mapping[str, Any]) -> tuple[str, int]:
        """File and row, for errors."""
        return self.shards[place["file"]].name, place["row"]

    def root_of(self, place: Mapping[str, Any]) -> Path | None:
        """The folder that paths in a row start from: that of its file; None on the hub."""
        shard = self.shards[place["file"]]
        return Path(shard.path).parent if shard.remote is None else None

    def scan(self) -> Iterator[tuple[dict[str, int], Any]]:
        """Place of every row, and what it holds beside pictures."""
        for number, shard in enumerate(self.shards):
            if shard.remote is None:
                yield from _rows(shard.path, number, self.heavy)
            else:
                with shard.remote.open(str(shard.path)) as opened:
                    yield from _rows(opened, number, self.heavy)

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        """All columns of one row."""
        return dict(zip(self.reader.columns, self.reader(place["file"], place["row"]), strict=True))

    def blocks(self, index: pa.Table) -> np.ndarray:
        """One number per row group, counted through all shards."""
        return row_groups(self.shards, index.column("file").to_numpy(), index.column("row").to_numpy())


def _rows(source: Any, number: int, heavy: frozenset[str]) -> Iterator[tuple[dict[str, int], Any]]:
    parquet = pq.ParquetFile(source, pre_buffer=False)
    row = 0
    for batch in parquet.iter_batches(BATCH, columns=light_leaves(parquet, heavy), use_threads=False):
        for fields in microseconds(pa.Table.from_batches([batch])).to_pylist():
            yield {"file": number, "row": row}, fields
            row += 1


def light_leaves(parquet: pq.ParquetFile, heavy: frozenset[str]) -> list[str]:
    """Paths of the leaf columns to index: those of raw bytes are left out where a sibling keeps the structure."""
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema.names))]
    light: list[str] = []
    for leaf in leaves:
        column = leaf.path.split(".")[0]
        siblings = [other for other in leaves if other.path.split(".")[0] == column]
        if column in heavy or (_is_raw(leaf) and not all(_is_raw(other) for other in siblings)):
            continue
        light.append(leaf.path)
    return light


def _is_raw(leaf: pq.ColumnSchema) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
