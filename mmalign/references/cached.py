"""Scores of a reference, kept on disk: computed once, and read by every run that would compute the same ones."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from mmalign.references.base import Reference, move_reference
from mmalign.types import Scores

MANIFEST = "manifest.json"
HASHES = "files.json"
"""Hashes of the model's files, which the settings are made of and which may be there first."""
FORMAT = 1
NAMED = 3  # rows that an error names
Visit = tuple[str, int, int]
"""One visit of one row: split, index, seed. All that is random about it follows from these."""
Mark = tuple[str, Mapping[str, str]]
"""A row's name, and hashes by part (``pixels``, ``text``) of what the model is given of it on this visit."""


class CachedReference:
    """``inner``, which is run only for batches whose scores ``folder`` does not hold yet.

    An entry is the scores of one batch: the same visits of the same rows, in the same order. A row is not taken out of
    its batch, because its score depends on the batch it is computed in by a rounding that beta = 5000 makes visible;
    so what is read is bit for bit what would be computed. A run with another loss, beta, learning rate or number of
    steps finds its scores here, and so does every later measurement of the held-out rows; one with another batch size
    computes its own.

    ``settings``: everything else that scores depend on, as JSON; the fingerprint of ``inner`` is added. ValueError for
    a folder that was made with others, and for a batch whose ``marks`` are not those it was kept with: a picture that
    changed under its name, say. Each process appends to a file of its own, so several runs may fill a folder together.
    The device waits for a batch's scores where they are computed, and not where they are read.
    """

    def __init__(self, inner: Reference, folder: Path, settings: Mapping[str, Any]) -> None:
        self.inner, self.folder = inner, folder
        self.hits = self.misses = 0
        self._own = folder / f"scores-{uuid4().hex[:12]}.jsonl"
        _open(folder, {**settings, "reference": inner.fingerprint()})
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._read: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have kept since."""
        for file in sorted(self.folder.glob("scores-*.jsonl")):
            if file != self._own:
                self._read[file], entries = read_entries(file, self._read.get(file, 0))
                self._kept |= entries

    @contextmanager
    def using(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference itself."""
        with self.inner.using(policy) as module:
            yield module

    def fingerprint(self) -> str:
        """That of the reference whose scores are kept."""
        return self.inner.fingerprint()

    def to(self, device: torch.device | str) -> "CachedReference":
        """Move the reference's own weights."""
        move_reference(self.inner, device)
        return self

    def __len__(self) -> int:
        """Batches whose scores are there."""
        return len(self._kept)

    def holds(self, visits: Sequence[Visit]) -> bool:
        """Whether the scores of these visits are there."""
        return _key(visits) in self._kept

    def scored(
        self, visits: Sequence[Visit], score: Callable[[Reference | None], Scores], marks: Sequence[Mark] = ()
    ) -> Scores:
        """``score(reference)``, with ``score(None)`` and the kept scores where there are any for these ``visits``."""
        kept = self._kept.get(_key(visits))
        if kept is not None:
            self.hits += 1
            self._check(kept, marks)
            return _with_reference(score(None), kept["logp"])
        self.misses += 1
        scores = score(self.inner)
        logp = {name: of.ref_logp for name, of in scores.branches.items() if of.ref_logp is not None}
        self._keep(visits, logp, marks)
        return scores

    def keep(
        self,
        visits: Sequence[Visit],
        policy: nn.Module,
        score: Callable[[nn.Module], Scores],
        marks: Sequence[Mark] = (),
    ) -> None:
        """Keep the scores of ``visits`` ahead of training: ``score`` is given the reference's module."""
        with torch.no_grad(), self.inner.using(policy) as module:
            scores = score(module)
        self._keep(visits, {name: of.logp for name, of in scores.branches.items()}, marks)

    def _keep(self, visits: Sequence[Visit], logp: Mapping[str, Tensor], marks: Sequence[Mark]) -> None:
        entry = {
            "visits": _key(visits),
            "logp": {name: values.tolist() for name, values in logp.items()},
            **({"rows": [dict(parts) for _, parts in marks]} if marks else {}),
        }
        self._kept[entry["visits"]] = entry
        with self._own.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _check(self, kept: Mapping[str, Any], marks: Sequence[Mark]) -> None:
        before = kept.get("rows", [])
        changed = [
            (name, [part for part, value in parts.items() if old.get(part) != value])
            for (name, parts), old in zip(marks, before, strict=True)
            if dict(parts) != old
        ]
        if not changed:
            return
        what = " and ".join(dict.fromkeys(part for _, parts in changed for part in parts))
        names = ", ".join(name for name, _ in changed[:NAMED]) + (", ..." if len(changed) > NAMED else "")
        raise ValueError(
            f"reference.path: {self.folder} holds scores of other {what} than {names} now has: "
            "what the row refers to, or how it is read, has changed since. Set it back, or name another folder"
        )


def _key(visits: Sequence[Visit]) -> str:
    return hashlib.sha256(json.dumps([list(visit) for visit in visits]).encode()).hexdigest()


def _with_reference(scores: Scores, kept: Mapping[str, Any]) -> Scores:
    # A JSON number holds every float32 and float64 exactly, infinities and NaN included. A branch that the policy alone
    # is scored on has nothing kept.
    branches = {
        name: replace(of, ref_logp=torch.tensor(kept[name], dtype=of.logp.dtype, device=of.logp.device))
        for name, of in scores.branches.items()
        if name in kept
    }
    return replace(scores, branches={**scores.branches, **branches})


def read_entries(file: Path, start: int = 0) -> tuple[int, dict[str, Mapping[str, Any]]]:
    """Where the whole lines of a file end, and the entries from byte ``start`` up to there.

    A last line without its end is being written, or was when its process was killed: it is no entry.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    entries = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries[entry["visits"]] = {"logp": entry["logp"], "rows": entry.get("rows", [])}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            place = f"line {number}" if not start else f"line {number} after byte {start}"
            raise ValueError(f"{file}, {place} is damaged ({error}); remove the file") from error
    return start + len(whole), entries


def kept_in(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """How many batches have their scores in ``folder``, and what these depend on; None where it is no such folder."""
    if not (folder / MANIFEST).is_file():
        return None
    keys: set[str] = set()
    for file in folder.glob("scores-*.jsonl"):
        keys.update(read_entries(file)[1])
    return len(keys), json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"]


def _open(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or check that it was made with the same settings."""
    wanted = json.loads(json.dumps(settings))
    path = folder / MANIFEST
    if not path.is_file():
        if folder.exists() and not all(_is_own(entry.name) for entry in folder.iterdir()):
            raise ValueError(f"reference.path: {folder} holds other files; name a new folder for the scores")
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{MANIFEST}.{uuid4().hex[:12]}.partial")
        partial.write_text(json.dumps({"format": FORMAT, "settings": wanted}, indent=1), encoding="utf-8")
        with partial.open() as written:
            os.fsync(written.fileno())
        partial.replace(path)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = manifest.get("settings", {})
    unlike = [
        f"  - {name}: {_short(found.get(name))} there, {_short(wanted.get(name))} now"
        for name in dict.fromkeys([*found, *wanted])
        if found.get(name) != wanted.get(name)
    ]
    if manifest.get("format") != FORMAT or unlike:
        listed = "\n".join(unlike) or f"  - format: {manifest.get('format')} there, {FORMAT} now"
        raise ValueError(
            f"reference.path: {folder} holds the scores of another reference, or of other rows or noise:\n{listed}\n"
            "Set these back, or name another folder"
        )


def _is_own(name: str) -> bool:
    """Whether a file may be there before the manifest: of hashes, or of another process that is just writing it."""
    return name == HASHES or (name.startswith((MANIFEST, HASHES)) and name.endswith(".partial"))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
