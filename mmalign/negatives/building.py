"""Making negatives for a whole data set: one journal that survives an interruption, one canonical file at the end."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmalign.data.table import RowTable, TableReport, named
from mmalign.data.targets import new_parquet
from mmalign.data.verification import progress_bar
from mmalign.negatives.answers import Answered
from mmalign.negatives.journal import Journal
from mmalign.types import VLMPair
from mmalign.vlm_data.canonical import write_vlm_canonical

Made = VLMPair | tuple[VLMPair, ...] | str
"""The pair or pairs (with sample ids of their own) that a row gave, or why it gave none."""
Make = Callable[[Answered, int], Made]
"""(row, seed of the row) -> what was made of it: the same for the same row, seed and model."""


@dataclass(frozen=True)
class Built:
    """``left_out``: (sample id, reason) of rows that no negative could be made of."""

    path: Path
    pairs: int
    left_out: tuple[tuple[str, str], ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> how many rows were left out for it, the commonest first."""
        return dict(Counter(why for _, why in self.left_out).most_common())

    def __str__(self) -> str:
        told = f"{self.pairs} pairs: {self.path}"
        return (
            f"{told}; {len(self.left_out)} rows without a negative: {named(self.left_out)}" if self.left_out else told
        )


def seed_of(seed: int, sample_id: str) -> int:
    """What a row's randomness comes from: the run's seed and the row alone, not its place or the rows around it."""
    digest = hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator for what :func:`seed_of` gave."""
    return torch.Generator().manual_seed(seed)


def check_out(out: str | Path) -> Path:
    """The file that will be written. ValueError for another suffix, or a file that is there."""
    return new_parquet(out)


def work_folder(out: str | Path) -> Path:
    """Where methods keep what they need until ``out`` is written; see ``Kit.folder``."""
    target = Path(out).expanduser()
    return target.with_name(f"{target.name}.work")


def build(
    rows: Sequence[Answered], make: Make, out: str | Path, *, settings: Mapping[str, Any], seed: int = 0
) -> Built:
    """``make(row, seed of the row)`` for every row, written to ``out`` as canonical parquet with its provenance.

    What is made goes to ``out``.journal and is flushed to disk before the next row; the same call goes on where another
    stopped and writes the same bytes, and the journal goes once ``out`` is there. A row that cannot be read or that the
    model cannot be shown (a ValueError that names it) is left out with the reason, as one is that ``make`` gives a
    reason for. ``settings`` (of the method, the model, the data) and ``seed`` are kept in the footer. Raises ValueError
    where ``out`` exists, the journal is of other settings, two rows share a sample id, or no row gave a pair.
    """
    target = check_out(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"settings": dict(settings), "seed": seed}, sort_keys=True, ensure_ascii=False)
    with Journal(target.with_name(f"{target.name}.journal"), header) as journal, progress_bar() as progress:
        task = progress.add_task("making negatives", total=len(rows), completed=0)
        for index in range(len(rows)):
            row = rows[index]
            if not journal.has(index, row.sample_id):
                journal.add(index, row, _made(row, make, seed_of(seed, row.sample_id)))
            progress.advance(task)
        left_out = tuple(journal.left_out)
        if not journal.pairs:
            raise ValueError(f"no row gave a pair: {named(left_out)}")
        built = Built(target, len(journal.pairs), left_out)
        told = {"settings": dict(settings), "seed": seed, "left_out": len(left_out), "reasons": built.reasons}
        write_vlm_canonical(_table(journal, rows, target), target, provenance=told)
    journal.path.unlink()
    shutil.rmtree(work_folder(target), ignore_errors=True)
    return built


def _made(row: Answered, make: Make, seed: int) -> Made:
    if row.unusable:
        return row.unusable
    try:
        return make(row, seed)
    except ValueError as error:  # of the row: a picture that does not decode, a text that holds a picture's mark
        return str(error).removeprefix(f"{row.sample_id}: ")


def _table(journal: Journal, rows: Sequence[Answered], target: Path) -> RowTable[VLMPair]:
    storage = journal.storage(rows)
    number = len(storage)
    report = TableReport("negatives", (target.name,), number, number, ties_policy="soft")
    return RowTable(storage, range(number), report, journal.fingerprint(), "vlm_pair")
