"""Scores that were made before: a table with columns ``prompt``, ``image`` and ``score``, matched to judged rows."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmalign.data.table import RowTable
from mmalign.labelling.scoring import ScoredRow
from mmalign.types import ImageBytes, Row

NEEDED = ("prompt", "image", "score")
SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ScoreFile:
    """``scores``: (prompt, image) -> score. An image is a path, absolute or from the file's folder, or the name that a
    row's picture has in errors (its ``origin``). ``reward``: the model's name, where the file says it."""

    path: Path
    reward: str
    scores: Mapping[tuple[str, str], float]

    @classmethod
    def read(cls, path: Path) -> "ScoreFile":
        """A .csv, .jsonl or .parquet file. ValueError for a missing column or a score that is no number."""
        scores: dict[tuple[str, str], float] = {}
        rewards: set[str] = set()
        for where, row in _records(path):
            missing = [name for name in NEEDED if row.get(name) is None]
            if missing:
                raise ValueError(f"{where} lacks {', '.join(missing)}; every row needs {', '.join(NEEDED)}")
            key, score = (str(row["prompt"]), _plain(str(row["image"]), path.parent)), _number(row["score"], where)
            if scores.setdefault(key, score) != score:
                raise ValueError(
                    f"{where}: {row['image']!r} with the prompt {row['prompt']!r} has two different scores"
                )
            rewards.add(str(row.get("reward") or path.stem))
        if not scores:
            raise ValueError(f"{path} holds no scores")
        if len(rewards) > 1:
            raise ValueError(f"{path} holds scores of {', '.join(sorted(rewards))}; give a file for each reward model")
        return cls(path, rewards.pop(), scores)

    def scored(self, table: RowTable, progress: Callable[[int], None] | None = None) -> list[ScoredRow]:
        """Scores of every row of ``table``. ValueError, naming the first, where a picture of the table has none."""
        rows = []
        for row in table:
            rows.append(ScoredRow(row.sample_id, {self.reward: [self._of(row, image) for image in row.images]}))
            if progress is not None:
                progress(1)
        return rows

    def _of(self, row: Row, image: ImageBytes) -> float:
        names = [image.origin] if image.path is None else [os.path.abspath(image.path), image.origin]  # noqa: PTH100
        for name in names:
            if (row.prompt, name) in self.scores:
                return self.scores[row.prompt, name]
        raise ValueError(
            f"{row.sample_id}: {self.path} has no score for the prompt {row.prompt!r} and the picture {names[0]}; "
            "score the same data with mmalign score"
        )


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


def _plain(image: str, folder: Path) -> str:
    """Absolute where it names a file, else as it is: the name of a picture inside a table."""
    path = folder / image
    return os.path.abspath(path) if path.is_file() else image  # noqa: PTH100 - links stay what they are


def _number(value: Any, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: score={value!r} must be a finite number")
    return score
