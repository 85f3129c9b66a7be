"""Reading single rows of picture columns out of parquet without holding whole row groups in memory."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.data.remote import RowGroups
from mmalign.data.shards import Shard, row_groups
from mmalign.data.windows import GroupReader
from mmalign.types import ImageBytes

BATCH_ROWS = 16
CACHE_BYTES = 64 * 2**20
Pictures = tuple[Any, ...]  # bytes, None where a cell is null, or lists and structs of them


@dataclass
class _Stream:
    """An open pass over one row group; ``next_row`` (numbered within the file) is the first row not given yet."""

    file: int
    group: int
    next_row: int
    batches: Iterator[pa.RecordBatch]


def microseconds(table: pa.Table) -> pa.Table:
    """``table`` with times in microseconds: Pick-a-Pic has nanoseconds, which Python's datetime cannot hold."""
    for position, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            times = table.column(position).cast(pa.timestamp("us", field.type.tz), safe=False)
            table = table.set_column(position, field.name, times)
    return table


class ParquetPictures:
    """Pictures in ``columns`` of parquet rows; the index tells ``file`` (number of the shard) and ``row`` of each.

    A column of lists gives all pictures of its list. ``hashes`` is a column with a list of digests of the pictures,
    ``extras`` one of JSON text that is read with them: in memory, the texts of a million rows take most of a gigabyte.
    """

    columns: Mapping[str, pa.DataType] = {"file": pa.int32(), "row": pa.int64()}

    def __init__(
        self, shards: Sequence[Shard], columns: Sequence[str], hashes: str, extras: str, keep: int = 2
    ) -> None:
        self.shards, self.hashes = tuple(shards), hashes
        columns = (*columns, extras)
        self.reader = reader_of(shards, columns, keep)

    def read(self, place: Mapping[str, Any]) -> tuple[ImageBytes, ...]:
        """Pictures of one row, each with file, row and column."""
        shard, row = self.shards[place["file"]], place["row"]
        cells = zip(self.reader.columns[:-1], self.reader(place["file"], row)[:-1], strict=True)
        named = [
            (f"{name}[{number}]", data)
            for name, cell in cells
            for number, data in enumerate(cell if isinstance(cell, list) else [cell])
        ]
        return tuple(ImageBytes(origin=f"{shard.name}:{row} {name}", data=data or b"") for name, data in named)

    def extras(self, place: Mapping[str, Any]) -> str | None:
        """Extras of one row, which come with its pictures."""
        return self.reader(place["file"], place["row"])[-1]

    def blocks(self, index: pa.Table) -> np.ndarray:
        """One number per row group, counted through all shards."""
        return row_groups(self.shards, index.column("file").to_numpy(), index.column("row").to_numpy())

    def keys(self, index: pa.Table) -> list[tuple[str, ...]]:
        """Digests of the pictures, read from the files."""
        tables = [shard.read([self.hashes]).column(0).to_pylist() for shard in self.shards]
        places = zip(index.column("file").to_pylist(), index.column("row").to_pylist(), strict=True)
        return [tuple(tables[file][row]) for file, row in places]


def reader_of(shards: Sequence[Shard], columns: Sequence[str], keep: int) -> "RowGroups | GroupReader | PictureReader":
    """What reads ``columns`` of single rows, where rows are asked for from ``keep`` row groups at a time.

    Over a network whole row groups are fetched. Here, they are read whole for a window of several
    (``data.shuffle: blocks``); rows that are asked for in order, or in none, are read with less memory.
    """
    if any(shard.remote is not None for shard in shards):
        return RowGroups(shards, columns, keep)
    return GroupReader(shards, columns, keep) if keep > 2 else PictureReader(shards, columns)


class PictureReader:
    """``reader(file, row)`` gives the bytes of the picture columns in that row (None where the cell is null).

    Parquet cannot jump to a row: a read decodes its row group from the start, in small batches, up to the row. Rows
    passed on the way stay in a cache of ``cache_bytes``, and a read further on in the same group continues the
    stream, so reading in order costs one pass. Memory: the cache and a page per column (writers put up to about 1000
    values in a page). Safe in threads, after a fork, and to pickle (the cache stays behind).
    """

    def __init__(self, shards: Sequence[Shard], columns: Sequence[str], cache_bytes: int = CACHE_BYTES) -> None:
        self.shards = tuple(shards)
        self.columns = tuple(columns)
        self.cache_bytes = cache_bytes
        self._start_afresh()

    def __call__(self, file: int, row: int) -> Pictures:
        """The picture bytes of row ``row`` of shard number ``file``. Raises ValueError where they cannot be read."""
        if self._pid != os.getpid():
            self._start_afresh()  # a forked worker must not share the parent's stream or a lock held at the fork
        with self._lock:
            if (file, row) not in self._cache:
                self._read_up_to(file, row)
            self._cache.move_to_end((file, row))
            return self._cache[file, row]

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "columns": self.columns, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], Pictures] = OrderedDict()
        self._cached_bytes = 0
        self._stream: _Stream | None = None

    def _read_up_to(self, file: int, row: int) -> None:
        try:
            stream, self._stream = self._stream_before(file, row), None  # one that fails halfway is not continued
            while stream.next_row <= row:
                for pictures in _rows(next(stream.batches), self.columns):
                    self._keep((file, stream.next_row), pictures)
                    stream.next_row += 1
            self._stream = stream
        except (OSError, pa.ArrowException, StopIteration) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else "it ends before that row"
            raise ValueError(
                f"{self.shards[file].path}: the pictures of row {row} cannot be read; "
                f"the file is damaged, gone, or changed since it was indexed ({reason})"
            ) from error

    def _stream_before(self, file: int, row: int) -> _Stream:
        shard, stream = self.shards[file], self._stream
        group = shard.group_of(row)
        if stream is not None and (stream.file, stream.group) == (file, group) and stream.next_row <= row:
            return stream
        # A buffered stream without pre-buffering keeps memory at a few pages instead of a row group.
        parquet = pq.ParquetFile(shard.path, buffer_size=2**20, pre_buffer=False)
        there = [name for name in self.columns if name in parquet.schema_arrow.names]
        batches = parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=there, use_threads=False)
        return _Stream(file, group, shard.group_ends[group - 1] if group else 0, batches)

    def _keep(self, key: tuple[int, int], pictures: Pictures) -> None:
        if key in self._cache:
            return
        self._cache[key] = pictures
        self._cached_bytes += _size(pictures)
        # The rows of one batch always stay, however large, because the caller is about to ask for one of them.
        while self._cached_bytes > self.cache_bytes and len(self._cache) > BATCH_ROWS:
            self._cached_bytes -= _size(self._cache.popitem(last=False)[1])


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[Pictures]:
    """Cells of ``columns``, row by row; None for a column that the file does not have."""
    nothing = [None] * batch.num_rows
    there = set(batch.schema.names)
    return zip(*(batch.column(name).to_pylist() if name in there else nothing for name in columns), strict=True)


def _size(pictures: Pictures) -> int:
    return sum(_bytes_in(cell) for cell in pictures)


def _bytes_in(cell: Any) -> int:
    """Length of a cell: bytes or text, a list of them, a struct that holds them, null, or a value of a few bytes."""
    if isinstance(cell, list | dict):
        return sum(_bytes_in(part) for part in (cell.values() if isinstance(cell, dict) else cell))
    if isinstance(cell, bytes | str):
        return len(cell)
    return 0 if cell is None else 8
