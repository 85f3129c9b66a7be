"""Reading JSONL, CSV and JSON arrays as records that remember where they were, for errors that say so."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".csv")
_SPACE = re.compile(r"[ \t\r\n]*")


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


def read_array(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 0, item) of a ``.json`` file that holds one array, an item at a time.

    Only the text and one item are in memory: as Python objects an array of a million items takes gigabytes.
    Raises ValueError, naming file and item, where the text is not such an array.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    for number, item, _ in array_items(text, path):
        yield number, item


def array_items(text: str, path: Path) -> Iterator[tuple[int, Any, tuple[int, int]]]:
    """(number, item, (first, last + 1) character) of every item of the JSON array ``text``; errors as above."""
    decoder, place = json.JSONDecoder(), _after_space(text, 0)
    if text[place : place + 1] != "[":
        raise ValueError(f"{path}: must hold a JSON array, [{{...}}, ...]; it starts with {text[place : place + 20]!r}")
    place, number = _after_space(text, place + 1), 0
    while text[place : place + 1] != "]":
        start = place
        try:
            item, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: item {number} is not JSON ({error}); the file is damaged or cut off") from error
        yield number, item, (start, place)
        place, number = _after_space(text, place), number + 1
        if text[place : place + 1] == ",":
            place = _after_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise ValueError(f"{path}: after item {number - 1} comes {text[place : place + 20]!r}, not a comma or ]")


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place
