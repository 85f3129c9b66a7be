"""The journal of a build: what became of each row, a line of JSON each, on disk before the next row is begun."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mmalign.negatives.answers import Answered
from mmalign.types import VLMPair
from mmalign.vlm_data.canonical import columns_of, parse
from mmalign.vlm_data.media import Where, pair_of


@dataclass
class Journal:
    """Lines ``[sample id, {"why": ...}]`` or ``[sample id, {"pairs": [cells, ...]}]`` behind a ``header``.

    Cells are those of the canonical form; pictures that the source row has are named by their number, others are
    written in base64. ``pairs``: (row, first byte of the line, which of its pairs) in the order of rows. ValueError
    where the file at ``path`` has another header, or two rows share a sample id.
    """

    path: Path
    header: str
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _digest: Any = field(default_factory=hashlib.sha256)

    def __enter__(self) -> Self:
        self._open_existing()
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.seek(0, os.SEEK_END)
        if not self._file.tell():
            self._append(self.header)
        self._digest.update(self.header.encode())
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def has(self, index: int, sample_id: str) -> bool:
        """Whether row ``index`` was done before; if so, it is counted now."""
        if sample_id in self._seen:
            raise ValueError(f"two rows have the sample id {sample_id!r}; give each its own")
        self._seen.add(sample_id)
        place = self._places.get(sample_id)
        if place is not None:
            self._count(index, place, self._read(place))
        return place is not None

    def add(self, index: int, row: Answered, made: VLMPair | tuple[VLMPair, ...] | str) -> None:
        """Keep what was made of ``row``."""
        if isinstance(made, str):
            entry: dict[str, Any] = {"why": made}
        else:
            own = {hashlib.sha256(image.read()).hexdigest(): number for number, image in enumerate(row.images)}
            pairs = (made,) if isinstance(made, VLMPair) else made
            if len({pair.sample_id for pair in pairs}) < len(pairs):
                raise ValueError(f"{row.sample_id}: its pairs share a sample id; a method has to give each its own")
            entry = {"pairs": [_cells(pair, own) for pair in pairs]}
        line = [row.sample_id, entry]
        self._count(index, self._append(json.dumps(line, ensure_ascii=False)), line)

    def storage(self, rows: Sequence[Answered]) -> "JournalRows":
        """The pairs as rows of a table."""
        return JournalRows(self, rows)

    def fingerprint(self) -> str:
        """A hash over everything that was made."""
        return self._digest.hexdigest()

    def pair(self, rows: Sequence[Answered], number: int) -> VLMPair:
        """Pair ``number``, read from the file."""
        index, place, part = self.pairs[number]
        _, entry = self._read(place)
        cells = dict(entry["pairs"][part])
        images = rows[index].images if any(isinstance(image, int) for image in cells["images"]) else ()
        cells["images"] = [
            images[image].read() if isinstance(image, int) else base64.b64decode(image) for image in cells["images"]
        ]
        return pair_of(parse(cells)[0], Where(self.path.name, index), cells["sample_id"])

    def sample_id(self, number: int) -> str:
        """The sample id of pair ``number``."""
        _, place, part = self.pairs[number]
        return self._read(place)[1]["pairs"][part]["sample_id"]

    def _count(self, index: int, place: int, line: list[Any]) -> None:
        sample_id, entry = line
        self._digest.update(json.dumps(line).encode())
        if "why" in entry:
            self.left_out.append((sample_id, entry["why"]))
        else:
            self.pairs += [(index, place, part) for part in range(len(entry["pairs"]))]

    def _open_existing(self) -> None:
        """Places of the lines that are there. A last line that an interruption cut off is taken off the file."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            start = 0
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(start)
                    break
                text = line.decode().rstrip("\n")
                if start == 0 and text != self.header:
                    raise ValueError(
                        f"{self.path} is of other settings ({text}) than these ({self.header}); remove it, or choose "
                        "another name"
                    )
                if start:
                    self._places[json.loads(text)[0]] = start
                start += len(line)

    def _read(self, place: int) -> list[Any]:
        self._file.seek(place)
        return json.loads(self._file.readline())

    def _append(self, line: str) -> int:
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return place


@dataclass(frozen=True)
class JournalRows:
    """Storage of a table of the pairs, each read when it is asked for."""

    journal: Journal
    rows: Sequence[Answered]

    def __len__(self) -> int:
        return len(self.journal.pairs)

    def __getitem__(self, position: int) -> VLMPair:
        return self.journal.pair(self.rows, position)

    @property
    def prompts(self) -> list[str]:
        """Conversation of every pair as text."""
        return [self[position].prompt_text for position in range(len(self))]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every pair."""
        return [self.journal.sample_id(position) for position in range(len(self))]

    @property
    def blocks(self) -> list[int]:
        """Every pair is as easy to read as any other."""
        return list(range(len(self)))


def _cells(pair: VLMPair, own: dict[str, int]) -> dict[str, Any]:
    cells = columns_of(pair, Path())
    known = zip(cells["images"], cells["image_sha256"], strict=True)
    cells["images"] = [own.get(digest, base64.b64encode(data).decode()) for data, digest in known]
    return cells
