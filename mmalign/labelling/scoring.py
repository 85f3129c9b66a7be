"""Scores of many pictures by one or several reward models, in chunks that are kept as they are made.

A chunk is a fixed stretch of the rows, so its scores do not depend on how many processes share the work, and a chunk
that is on disk is never scored again: an interrupted scoring goes on, and ends with the same numbers.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from mmalign.data import UnreadableImage, decode
from mmalign.data.table import hashed
from mmalign.rewards import RewardModel, score_many
from mmalign.rewards.statistic import picture_statistics
from mmalign.types import ImageBytes

ROWS_PER_CHUNK = 16


class Pictured(Protocol):
    """What is scored: a row of a table, or pictures of one prompt out of several folders."""

    @property
    def sample_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def images(self) -> tuple[ImageBytes, ...]: ...


@dataclass(frozen=True)
class ScoredRow:
    """``scores``: reward name -> one per picture of the row. ``statistics``: name -> one per picture, where asked for.

    ``problem``: why the row could not be scored; there are no scores then.
    """

    sample_id: str
    scores: Mapping[str, list[float]]
    statistics: Mapping[str, list[float]] = field(default_factory=dict)
    problem: str | None = None


class ScoreRecords:
    """``FOLDER/scores-000000.json`` ...: one file per chunk, written whole; ``folder`` None keeps them in memory.

    ``key`` names what is scored and by what; records with another key are an error, for they are of another job.
    """

    def __init__(self, folder: Path | None, key: str, rows: int) -> None:
        self.folder, self.key, self.rows = folder, key, rows
        self.chunks = range(-(-rows // ROWS_PER_CHUNK))
        self._kept: dict[int, list[ScoredRow]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def rows_of(self, chunk: int) -> range:
        """Row numbers of a chunk."""
        return range(chunk * ROWS_PER_CHUNK, min((chunk + 1) * ROWS_PER_CHUNK, self.rows))

    def has(self, chunk: int) -> bool:
        """Whether the chunk is scored already."""
        return chunk in self._kept or (self.folder is not None and self._file(chunk).is_file())

    def keep(self, chunk: int, scored: Sequence[ScoredRow]) -> None:
        """Store a chunk; on disk it is there whole or not at all."""
        if self.folder is None:
            self._kept[chunk] = list(scored)
            return
        file = self._file(chunk)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8") as out:
            json.dump({"key": self.key, "rows": [asdict(row) for row in scored]}, out, ensure_ascii=False)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)

    def read(self, chunk: int) -> list[ScoredRow]:
        """A chunk that is there. ValueError where it is of another job."""
        if self.folder is None:
            return self._kept[chunk]
        data = json.loads(self._file(chunk).read_text(encoding="utf-8"))
        if data["key"] != self.key:
            raise ValueError(
                f"{self._file(chunk)} holds scores of other pictures or other reward models; give another folder, or "
                f"delete {self.folder}"
            )
        return [ScoredRow(**row) for row in data["rows"]]

    def all(self) -> list[ScoredRow]:
        """Every row's scores, in order."""
        return [row for chunk in self.chunks for row in self.read(chunk)]

    def _file(self, chunk: int) -> Path:
        assert self.folder is not None
        return self.folder / f"scores-{chunk:06d}.json"


def scoring_key(
    fingerprint: str, rewards: Sequence[RewardModel], *extra: object, options: Mapping[str, object] | None = None
) -> str:
    """Names a job: the pictures by their table's fingerprint, the rewards by name, version, and the weights and dtype
    of ``options``; a job may go on on another device."""
    made = [f"{name}={value}" for name, value in sorted((options or {}).items()) if name != "device"]
    return hashed(fingerprint, ROWS_PER_CHUNK, *((reward.name, reward.version) for reward in rewards), *extra, *made)


def score_rows(
    rows: Sequence[Pictured], rewards: Sequence[RewardModel], *, batch_size: int = 16, statistics: bool = False
) -> list[ScoredRow]:
    """Scores of all pictures of ``rows``, ``batch_size`` pictures at a time; a row with a broken picture has a problem.

    Raises ValueError for a reward that gives the wrong number of scores or one that is not finite.
    """
    opened: list[tuple[Pictured, list[Image.Image] | str]] = [(row, _opened(row)) for row in rows]
    good = [(row, pictures) for row, pictures in opened if not isinstance(pictures, str)]
    prompts = [row.prompt for row, pictures in good for _ in pictures]
    pictures = [picture for _, of_row in good for picture in of_row]
    flat: dict[str, list[float]] = {reward.name: [] for reward in rewards}
    for start in range(0, len(pictures), batch_size):
        part = slice(start, start + batch_size)
        with torch.no_grad():
            found = score_many(rewards, prompts[part], pictures[part])
        for name, scores in found.items():
            flat[name] += _checked(name, scores, len(prompts[part]), rows)
    measured = [picture_statistics(picture) for picture in pictures] if statistics else []
    scored, at = [], 0
    for row, of_row in opened:
        if isinstance(of_row, str):
            scored.append(ScoredRow(row.sample_id, {}, problem=of_row))
            continue
        part = slice(at, at + len(of_row))
        at = part.stop
        seen = {name: [one[name] for one in measured[part]] for name in measured[0]} if measured else {}
        scored.append(ScoredRow(row.sample_id, {name: values[part] for name, values in flat.items()}, seen))
    return scored


def score_chunks(
    rows: Sequence[Pictured],
    rewards: Sequence[RewardModel],
    records: ScoreRecords,
    chunks: Sequence[int],
    *,
    batch_size: int = 16,
    statistics: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Score those of ``chunks`` that are not in ``records`` yet; ``progress`` gets the number of rows just finished."""
    for chunk in chunks:
        if not records.has(chunk):
            part = [rows[index] for index in records.rows_of(chunk)]
            records.keep(chunk, score_rows(part, rewards, batch_size=batch_size, statistics=statistics))
        if progress is not None:
            progress(len(records.rows_of(chunk)))


def _opened(row: Pictured) -> list[Image.Image] | str:
    try:
        return [decode(image) for image in row.images]
    except UnreadableImage as error:
        return str(error)


def _checked(name: str, scores: torch.Tensor, wanted: int, rows: Sequence[Pictured]) -> list[float]:
    scores = scores.detach().double().cpu()
    if scores.shape != (wanted,) or not bool(scores.isfinite().all()):
        raise ValueError(
            f"reward {name!r} gave {list(scores.shape)} scores, or some that are not finite, for {wanted} pictures "
            f"among rows {rows[0].sample_id} to {rows[-1].sample_id}"
        )
    return scores.tolist()
