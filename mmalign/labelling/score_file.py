"""Scores that were made before, by ``mmalign score`` or anything else, matched to judged rows.

A row has ``image``, ``prompt`` and a column for each reward model (``score``, where there is no other name), or
``error``. Version and scale are read from ``FILE.info.json``, which ``mmalign score`` writes beside it.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmalign.data.table import RowTable
from mmalign.labelling.scoring import ScoredRow
from mmalign.types import ImageBytes, Row

NOT_SCORES = ("image", "prompt", "error")
SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ScoreFile:
    """``scores``: (prompt, image) -> score, or why there is none. An image is an absolute path where it names a file,
    else the name that a row's picture has in errors (its ``origin``)."""

    path: Path
    reward: str
    version: str
    scale: str
    scores: Mapping[tuple[str, str], float | str]

    @classmethod
    def read(cls, path: Path, *, reward: str | None = None, roots: Sequence[Path] = ()) -> "ScoreFile":
        """A .csv, .jsonl or .parquet file. ``reward``: which column, where there are several.

        Image paths start from one of ``roots``, or from the file's own folder. ValueError for a missing column, a
        score that is no number, or a picture with two different ones.
        """
        places = [*roots, path.parent]
        scores: dict[tuple[str, str], float | str] = {}
        for where, row in _records(path):
            missing = [name for name in ("prompt", "image") if row.get(name) is None]
            if missing:
                raise ValueError(f"{where} lacks {', '.join(missing)}; every row needs prompt, image and a score")
            reward = _column(row, reward, where)
            key = (str(row["prompt"]), _plain(str(row["image"]), places))
            score = str(row["error"]) if row.get("error") else _number(row.get(reward), reward, where)
            if scores.setdefault(key, score) != score:
                raise ValueError(
                    f"{where}: {row['image']!r} with the prompt {row['prompt']!r} has two different scores"
                )
        if reward is None:
            raise ValueError(f"{path} holds no scores")
        about = _about(path, reward)
        return cls(path, reward, about.get("version", ""), about.get("scale", f"of {path.name}"), scores)

    def scored(self, table: RowTable, progress: Callable[[int], None] | None = None) -> list[ScoredRow]:
        """Scores of every row of ``table``. ValueError, naming the first, where a picture of the table has none."""
        rows = []
        for row in table:
            found = [self._of(row, image) for image in row.images]
            problem = next((score for score in found if isinstance(score, str)), None)
            numbers: list[float] = [score for score in found if not isinstance(score, str)]
            scores: dict[str, list[float]] = {} if problem else {self.reward: numbers}
            rows.append(ScoredRow(row.sample_id, scores, problem=problem))
            if progress is not None:
                progress(1)
        return rows

    def _of(self, row: Row, image: ImageBytes) -> float | str:
        names = [image.origin] if image.path is None else [os.path.abspath(image.path), image.origin]  # noqa: PTH100
        for name in names:
            if (row.prompt, name) in self.scores:
                return self.scores[row.prompt, name]
        raise ValueError(
            f"{row.sample_id}: {self.path} has no score for the prompt {row.prompt!r} and the picture {names[0]}; "
            "score the same pictures with mmalign score, and say with --images which folder that was"
        )


def _column(row: Mapping[str, Any], reward: str | None, where: str) -> str:
    """The column of scores: the one asked for, or the only one."""
    there = [name for name in row if name not in NOT_SCORES]
    if reward is None and len(there) != 1:
        raise ValueError(f"{where} has the scores {', '.join(there) or 'of nothing'}; say which with --reward NAME")
    if reward is not None and reward not in there:
        raise ValueError(f"{where} has no scores of {reward!r}; it has {', '.join(there) or 'none'}")
    return reward or there[0]


def _about(path: Path, reward: str) -> Mapping[str, str]:
    info = path.with_name(f"{path.name}.info.json")
    if not info.is_file():
        return {}
    try:
        return json.loads(info.read_text(encoding="utf-8"))["rewards"][reward]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{info} does not tell of {reward}: {type(error).__name__}") from error


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            yield f"{path}, row {number}", row
    elif suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                yield f"{path}, line {number}", row
    elif suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is a {type(row).__name__}, not an object")
            yield f"{path}, line {number}", row
    else:
        raise ValueError(f"{path}: scores are read from {', '.join(SUFFIXES)} files")


def _plain(image: str, places: Sequence[Path]) -> str:
    """Absolute where it names a file, else as it is: the name of a picture inside a table."""
    found = next((place / image for place in places if (place / image).is_file()), None)
    return image if found is None else os.path.abspath(found)  # noqa: PTH100 - links stay what they are


def _number(value: Any, name: str, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: {name}={value!r} must be a finite number")
    return score
