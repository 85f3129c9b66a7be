"""Writing the one file of all records without holding it in memory: a million rows are a gigabyte of text."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.caches.files import PARTIAL
from mmalign.caches.store import KEY_LENGTH, KEY_TYPE

_HEADER_MULTIPLE = 8


def write_records(path: Path, parts: Iterable[Mapping[str, Any]], metadata: Mapping[str, str]) -> None:
    """A safetensors file of ``parts`` in their order: what :class:`~mmalign.caches.rows.RowRecords` opens.

    ``ends`` [rows] int64, where each record ends in ``text``; ``keys`` [n, 32], distinct and sorted; ``text`` and
    ``files``, bytes, the latter distinct lines. safetensors' own writer wants all of it in memory, several times over;
    its format is a length, a JSON header and the tensors behind each other. In memory: 8 bytes a row, and the keys.
    """
    ends: list[NDArray[np.int64]] = []
    keys: list[NDArray[Any]] = []
    seen: set[int] = set()
    scratch = partial(tempfile.TemporaryFile, dir=path.parent, suffix=PARTIAL)
    with scratch() as text, scratch() as files:
        for part in parts:
            records = [json.dumps(record).encode() for record in part["records"]]
            ends.append(text.tell() + np.cumsum([len(record) for record in records], dtype=np.int64))
            text.write(b"".join(records))
            keys.append(np.array(part["keys"], dtype=KEY_TYPE))
            for line in (json.dumps(file).encode() + b"\n" for file in part["files"]):
                if hash(line) not in seen:
                    seen.add(hash(line))
                    files.write(line)
        numbers = np.concatenate([np.empty(0, np.int64), *ends])
        distinct = np.unique(np.concatenate([np.empty(0, KEY_TYPE), *keys]))
        sizes = {
            "ends": ("I64", [len(numbers)], numbers.nbytes),
            "keys": ("U8", [len(distinct), KEY_LENGTH], distinct.nbytes),
            "text": ("U8", [text.tell()], text.tell()),
            "files": ("U8", [files.tell()], files.tell()),
        }
        with path.open("wb") as out:
            out.write(_header(sizes, metadata))
            out.write(numbers.astype("<i8").data)
            out.write(distinct.tobytes())
            for source in (text, files):
                source.seek(0)
                shutil.copyfileobj(source, out, 2**20)


def _header(sizes: Mapping[str, tuple[str, list[int], int]], metadata: Mapping[str, str]) -> bytes:
    """The length of the JSON as eight bytes, then the JSON, filled with blanks."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, size) in sizes.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_MULTIPLE)
    return len(text).to_bytes(8, "little") + text
