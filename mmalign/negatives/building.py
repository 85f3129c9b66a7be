"""Making negatives for a whole data set: one journal that survives an interruption, one canonical file at the end."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmalign.data.extras import dumps_extras, loads_extras
from mmalign.data.table import named
from mmalign.data.verification import progress_bar
from mmalign.negatives.answers import Answered
from mmalign.types import VLMPair
from mmalign.vlm_data.canonical import write_vlm_canonical
from mmalign.vlm_data.memory import table_of

Make = Callable[[Answered, int], VLMPair | str]


@dataclass(frozen=True)
class Built:
    """``left_out``: (sample id, reason) of rows that no negative could be made of."""

    path: Path
    pairs: int
    left_out: tuple[tuple[str, str], ...]

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


def build(
    rows: Sequence[Answered], make: Make, out: str | Path, *, settings: Mapping[str, Any], seed: int = 0
) -> Built:
    """``make(row, seed of the row)`` for every row, written to ``out`` as canonical parquet with its provenance.

    Every answer goes to ``out``.journal and is flushed to disk before the next one is made; the same call goes on
    where another stopped, and the journal goes once ``out`` is there. ``settings`` (of the method, the model) and
    ``seed`` are kept in the footer. Raises ValueError where ``out`` exists, the journal is of other settings, or no
    row gave a pair.
    """
    target = Path(out).expanduser()
    if target.suffix != ".parquet":
        raise ValueError(f"out={out}: give a file name that ends in .parquet")
    if target.exists():
        raise ValueError(f"{target} exists and is not overwritten; give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    journal = target.with_name(f"{target.name}.journal")
    header = json.dumps({"settings": dict(settings), "seed": seed}, sort_keys=True)
    done = _read(journal, header)
    with journal.open("a", encoding="utf-8") as file, progress_bar() as progress:
        task = progress.add_task("making negatives", total=len(rows))
        if not file.tell():
            _append(file, header)
        for row in rows:
            if row.sample_id not in done:
                done[row.sample_id] = _entry(make(row, seed_of(seed, row.sample_id)))
                _append(file, json.dumps([row.sample_id, done[row.sample_id]], ensure_ascii=False))
            progress.advance(task)
    entries = [(row, done[row.sample_id]) for row in rows]
    pairs = [_pair(row, entry) for row, entry in entries if "why" not in entry]
    left_out = tuple((row.sample_id, entry["why"]) for row, entry in entries if "why" in entry)
    if not pairs:
        raise ValueError(f"no row gave a pair: {named(left_out)}")
    write_vlm_canonical(
        table_of(pairs, source="negatives"),
        target,
        provenance={"settings": dict(settings), "seed": seed, "left_out": len(left_out)},
    )
    journal.unlink()
    return Built(target, len(pairs), left_out)


def _entry(made: VLMPair | str) -> dict[str, Any]:
    if isinstance(made, str):
        return {"why": made}
    return {"chosen": made.chosen, "rejected": made.rejected, "extras": dumps_extras(made.extras)}


def _pair(row: Answered, entry: Mapping[str, Any]) -> VLMPair:
    return replace(row.against(entry["rejected"]), chosen=entry["chosen"], extras=loads_extras(entry["extras"]))


def _read(journal: Path, header: str) -> dict[str, dict[str, Any]]:
    """Entries by sample id. A last line that was cut off in an interruption is taken off the file."""
    if not journal.exists():
        return {}
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with journal.open("r+b") as file:
            file.truncate(len(whole))
    lines = whole.decode().splitlines()
    if lines and lines[0] != header:
        raise ValueError(
            f"{journal} is of other settings ({lines[0]}) than these ({header}); remove it, or choose another name"
        )
    return dict(json.loads(line) for line in lines[1:])


def _append(file: Any, line: str) -> None:
    file.write(line + "\n")
    file.flush()
    os.fsync(file.fileno())
