"""Which pictures are to be scored against which prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MANIFEST = "manifest.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
COLUMNS = ("image", "file", "path")


class Scored(NamedTuple):
    """One picture, by its path relative to the folder, and the prompt it is scored against."""

    image: str
    prompt: str


def read_scored(folder: Path, prompts: Path | None) -> list[Scored]:
    """Pictures of ``folder`` with their prompts, in a fixed order.

    ``prompts``: a .jsonl or .csv file whose rows have ``prompt`` and ``image`` (or ``file`` or ``path``), relative to
    the folder, each a row of the result; or a text file with one prompt for all pictures, or with one line for each
    picture in the order of their names. None: the ``manifest.jsonl`` of ``mmalign generate``, there or in the folder
    above. Raises ValueError for a row without prompt or picture, a picture that is not there, and counts that differ.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder} is not a folder")
    if prompts is not None and prompts.suffix.lower() not in (".jsonl", ".csv"):
        return _by_name(folder, prompts)
    file = prompts if prompts is not None else _manifest(folder)
    base = folder if prompts is not None else file.parent
    rows = []
    for line, image, prompt in _table(file):
        path = base / image
        if prompts is None and not path.is_relative_to(folder):
            continue
        if not path.is_file():
            raise ValueError(f"{file}, line {line}: there is no picture {path}")
        rows.append(Scored(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else image, prompt))
    if not rows:
        raise ValueError(f"{file} names no picture in {folder}")
    return rows


def _table(file: Path) -> Iterator[tuple[int, str, str]]:
    from mmalign.data.records import read_records

    for record in read_records(file):
        names = [name for name in COLUMNS if name in record.fields]
        image, prompt = record.fields.get(names[0]) if len(names) == 1 else None, record.fields.get("prompt")
        if not isinstance(image, str) or not isinstance(prompt, str):
            given = json.dumps(record.fields, ensure_ascii=False)[:120]
            raise ValueError(f"{file}, line {record.line}: needs a prompt and one of {', '.join(COLUMNS)}, got {given}")
        yield record.line, image, prompt


def _by_name(folder: Path, prompts: Path) -> list[Scored]:
    pictures = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not pictures:
        raise ValueError(f"--images {folder} holds no pictures ({', '.join(SUFFIXES)})")
    lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) == 1:
        lines *= len(pictures)
    if len(lines) != len(pictures):
        raise ValueError(
            f"{prompts} has {len(lines)} prompts for {len(pictures)} pictures; give one prompt for all, a line for "
            "each picture in the order of their names, or a .jsonl with image and prompt"
        )
    return [Scored(picture, line) for picture, line in zip(pictures, lines, strict=True)]


def _manifest(folder: Path) -> Path:
    for path in (folder / MANIFEST, folder.parent / MANIFEST):
        if path.is_file():
            return path
    raise ValueError(
        f"{folder} has no {MANIFEST} that tells the prompts; give --prompts FILE: .jsonl or .csv with image and "
        "prompt, or text with one prompt for all pictures or a line for each"
    )
