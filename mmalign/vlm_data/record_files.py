"""JSON and JSONL files of records, read one by one where they lie: only places are kept in memory."""

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmalign.data.folder import file_digest
from mmalign.data.records import array_items, read_array

SUFFIXES = (".json", ".jsonl")


class RecordFile:
    """Records of one ``.jsonl`` file (an object per line) or ``.json`` file (one array of objects), UTF-8.

    ``scan`` gives (row number, place, fields) of each; ``read(place)`` the fields again. Row numbers are lines from 1
    of JSONL and items from 0 of JSON. Raises ValueError, naming file and line, for what is no JSON at all.
    """

    columns: Mapping[str, pa.DataType] = {"start": pa.int64(), "length": pa.int64(), "row": pa.int64()}

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.files = (path.name,)

    @property
    def marks(self) -> tuple[object, ...]:
        """What changes with the file."""
        return (self.name, file_digest(self.path))

    def where(self, place: Mapping[str, Any]) -> tuple[str, int]:
        """File and row, for errors."""
        return self.name, place["row"]

    def root_of(self, place: Mapping[str, Any]) -> Path | None:  # noqa: ARG002 - one file, one folder
        """The folder that paths in a record start from."""
        return self.path.parent

    def scan(self) -> Iterator[tuple[dict[str, int], Any]]:
        """Place and contents of every record, whatever JSON value it is."""
        yield from (_array(self.path) if self.path.suffix.lower() == ".json" else _lines(self.path))

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the record at ``place``. ValueError where the file changed since it was indexed."""
        with self.path.open("rb") as file:
            file.seek(place["start"])
            text = file.read(place["length"])
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.path}:{place['row']}: changed since it was indexed ({error})") from error
        return fields

    def blocks(self, index: pa.Table) -> np.ndarray:
        """Every row is as easy to read as any other."""
        return np.arange(index.num_rows)


def first_record(path: Path) -> Any:
    """The first record of a file, None where it has none."""
    if path.suffix.lower() == ".json":
        return next((item for _, item in read_array(path)), None)
    return next((fields for _, fields in _lines(path)), None)


def _lines(path: Path) -> Iterator[tuple[dict[str, int], Any]]:
    start = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            place = {"start": start + len(line) - len(text), "length": len(text), "row": number}
            start += len(line)
            if not text.strip():
                continue
            try:
                yield place, json.loads(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 text ({error})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be one object") from error


def _array(path: Path) -> Iterator[tuple[dict[str, int], Any]]:
    """Items with their places in bytes, found by the ends of the items that the decoder tells in characters."""
    raw = path.read_bytes()
    bom = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    del raw
    done, bytes_done = 0, bom
    for number, item, (start, end) in array_items(text, path):
        bytes_done += len(text[done:start].encode())
        length = len(text[start:end].encode())
        yield {"start": bytes_done, "length": length, "row": number}, item
        done, bytes_done = end, bytes_done + length
