"""Reading JSONL and CSV as records that remember their line, for errors that say where."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".csv")


class Record(NamedTuple):
    """One row of a user's file. Empty cells and JSON nulls are left out of ``fields``."""

    line: int
    fields: dict[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """Records of a ``.jsonl`` (one object per line) or ``.csv`` (header first) file, UTF-8. Blank lines are skipped.

    Raises ValueError, naming file and line, where the file is neither, is not UTF-8, or a line does not parse.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: cannot read {suffix or 'a file without suffix'}; give a .jsonl or a .csv file")
    try:
        yield from (_jsonl(path) if suffix == ".jsonl" else _csv(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be one object") from error
            if not isinstance(fields, dict):
                raise ValueError(f"{path}:{number}: holds a {type(fields).__name__}; each line must be one object")
            yield Record(number, {name: value for name, value in fields.items() if value is not None})


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            for fields in rows:
                line = rows.line_num  # where the row ends, if a quoted cell spans several lines
                if None in fields or None in fields.values():
                    raise ValueError(
                        f"{path}:{line}: the row has {'more' if None in fields else 'fewer'} cells than the header has "
                        f"columns ({len(rows.fieldnames or [])}); quote cells that contain commas"
                    )
                yield Record(line, {name: value for name, value in fields.items() if value.strip()})
        except csv.Error as error:
            raise ValueError(f"{path}: not CSV after line {rows.line_num} ({error})") from error
