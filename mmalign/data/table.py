"""RowTable: rows that are indexed in memory and whose pictures are read when a row is asked for."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
from typing_extensions import TypeVar

from mmalign.types import AnyRow, Row, RowKind

R = TypeVar("R", bound=AnyRow, default=Row, covariant=True)  # plain RowTable: rows of image generators
NAMED = 10  # how many bad rows an error or a report spells out


@dataclass(frozen=True)
class TableReport:
    """What became of every row of the source; ``str(report)`` is the paragraph for the log.

    ``rows`` = ``kept`` + ``unlabelled`` + ``corrupt`` + dropped ties + rows never looked at because of ``max_rows``.
    ``ties`` counts labels of exactly one half, ``soft`` labels strictly between one half and one.
    ``corrupt`` holds (sample id, reason) of every row that was left out because it cannot be used.
    """

    source: str
    files: tuple[str, ...]
    rows: int
    kept: int
    ties: int = 0
    ties_policy: Literal["drop", "soft", "error"] = "drop"
    soft: int = 0
    unlabelled: int = 0
    beyond_max_rows: int = 0
    corrupt: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ties_dropped(self) -> int:
        """Ties that were left out."""
        return self.ties if self.ties_policy == "drop" else 0

    @property
    def ties_kept(self) -> int:
        """Ties that stay in the table, with preference 0.5."""
        return self.ties - self.ties_dropped

    def __str__(self) -> str:
        files = self.files[0] if len(self.files) == 1 else f"{len(self.files)} files"
        parts = [f"{self.source}: {count(self.rows, 'row')} read from {files}, {self.kept} kept."]
        if self.ties_dropped:
            parts.append(f"{count(self.ties_dropped, 'tie')} dropped (data.ties=soft keeps them).")
        if self.ties_kept:
            parts.append(f"{count(self.ties_kept, 'tie')} kept as soft labels of 0.5.")
        if self.soft:
            parts.append(f"{count(self.soft, 'other soft label')}.")
        if self.unlabelled:
            parts.append(f"{count(self.unlabelled, 'unlabelled row')} skipped.")
        if self.beyond_max_rows:
            parts.append(f"{count(self.beyond_max_rows, 'row')} beyond data.max_rows not used.")
        if self.corrupt:
            parts.append(f"{count(len(self.corrupt), 'unusable row')} skipped: {named(self.corrupt)}.")
        return " ".join([*parts, *self.notes])


class RowStorage(Protocol[R]):
    """The storage behind a table. ``prompts``, ``sample_ids`` and ``blocks`` must not read any picture.

    ``blocks[i]`` numbers the stretch of storage that row i lies in: rows of one block are cheap to read in sequence.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> R: ...
    @property
    def prompts(self) -> Sequence[str]: ...
    @property
    def sample_ids(self) -> Sequence[str]: ...
    @property
    def blocks(self) -> Sequence[int] | np.ndarray: ...


@runtime_checkable
class RankedStorage(RowStorage[Row], Protocol):
    """Storage of rankings that knows every row's labels without reading a picture."""

    @property
    def labels(self) -> Sequence[Sequence[float]]: ...


@runtime_checkable
class KeyedStorage(RowStorage[AnyRow], Protocol):
    """Storage that can tell which pictures are the same without reading them.

    ``image_keys()[i]`` names the pictures of row i in the order of ``Row.images``; equal keys, equal pictures. Raises
    ValueError where the source does not say.
    """

    def image_keys(self) -> Sequence[tuple[str, ...]]: ...


@runtime_checkable
class GroupedStorage(RowStorage[AnyRow], Protocol):
    """Storage that names, for every row, what it must not share with held-out rows, where that is not the prompt."""

    @property
    def groups(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class RowTable(Sequence[R]):
    """A lazy sequence of rows, all of one ``kind``: pairs, rankings or unary rows, or pairs of responses.

    It pickles without pictures, so DataLoader workers can hold it.

    ``positions`` are the rows of ``storage`` that belong to the table, in order. ``fingerprint`` changes with the
    files' names, sizes and contents, with the settings that chose rows, and with the choice of rows itself.
    ``report`` tells how the *source* was read; a part made with :meth:`select` keeps its source's report.
    """

    storage: RowStorage[R]
    positions: Sequence[int] | np.ndarray  # eight bytes each, where a list would take forty
    report: TableReport
    fingerprint: str = field(repr=False)
    kind: RowKind = "pair"

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "RowTable[R]": ...
    def __getitem__(self, index: int | slice) -> "R | RowTable[R]":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self.storage[int(self.positions[index])]

    def __iter__(self) -> Iterator[R]:
        return (self.storage[int(position)] for position in self.positions)

    @property
    def prompts(self) -> list[str]:
        """Prompt of every row, without reading a picture."""
        prompts = self.storage.prompts
        return [prompts[position] for position in self.positions]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row, without reading a picture."""
        sample_ids = self.storage.sample_ids
        return [sample_ids[position] for position in self.positions]

    @property
    def blocks(self) -> list[int]:
        """Number of the storage block of every row: shuffling block by block reads large shards much faster."""
        blocks = np.asarray(self.storage.blocks)
        return blocks[np.asarray(self.positions, dtype=np.int64)].tolist()

    def select(self, indices: Iterable[int]) -> "RowTable[R]":
        """The rows at ``indices`` (in the table's own numbering) as a table with its own fingerprint."""
        chosen = np.fromiter(indices, dtype=np.int64)
        if np.array_equal(chosen, np.arange(len(self))):
            return self
        positions = np.asarray(self.positions, dtype="<i8")[chosen]
        fingerprint = hashed(self.fingerprint, hashlib.sha256(positions.tobytes()).hexdigest())
        return replace(self, positions=positions, fingerprint=fingerprint)


def hashed(*parts: object) -> str:
    """Hex SHA-256 over the parts' texts, with their boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()


def count(number: int, noun: str) -> str:
    """``count(1, "tie")`` is "1 tie", ``count(2, "tie")`` is "2 ties"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(corrupt: Sequence[tuple[str, str]]) -> str:
    """The first ten bad rows with their reasons, and how many more there are."""
    shown = "; ".join(f"{sample_id} ({reason})" for sample_id, reason in corrupt[:NAMED])
    rest = len(corrupt) - NAMED
    return f"{shown}; and {rest} more" if rest > 0 else shown
