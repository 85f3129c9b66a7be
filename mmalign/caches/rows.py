"""Records of a table's rows: made in parts by several processes, then one memory-mapped file."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmalign.caches.claims import Claims, locked
from mmalign.caches.files import PARTIAL, write_json, written_whole
from mmalign.caches.manifest import CacheMismatch, checked_folder, fingerprint_of_settings, make_folder
from mmalign.caches.records_file import write_records
from mmalign.caches.store import as_keys

RECORDS = "rows.safetensors"
CLAIMS, LOCK = "claims.lock", "join.lock"
LARGEST_PART, PARTS = 256, 64
KIND = "rows"


class RowRecords:
    """What is kept of each row: a JSON object. Opening reads no record; one look-up reads one.

    ``keys``: every entry that the rows need (dtype S32). Beside the records lie the size and time of change of every
    picture that is a file of its own, so that a changed one is noticed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / RECORDS
        try:
            self._file: Any = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CacheMismatch(f"{path} is damaged ({error}); to build it again: rm -r {folder}") from error
        if (self._file.metadata() or {}).get("settings") != fingerprint_of_settings(settings):
            raise CacheMismatch(f"{path} belongs to another cache folder; to build it again: rm -r {folder}")
        self._ends = self._file.get_tensor("ends")
        self.keys = as_keys(self._file.get_tensor("keys"))

    @classmethod
    def find(cls, root: Path, settings: Mapping[str, Any]) -> "RowRecords | None":
        """The records for ``settings``, None where they are not complete."""
        folder = checked_folder(root, KIND, settings)
        if not (folder / RECORDS).is_file():
            return None
        for leftover in folder.glob("part-*.json"):  # of a process that was killed after it had joined them
            leftover.unlink(missing_ok=True)
        return cls(folder, settings)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start = int(self._ends[row - 1]) if row else 0
        return json.loads(bytes(self._file.get_slice("text")[start : int(self._ends[row])].numpy()))

    def changed_file(self) -> str | None:
        """A picture's file that is not what it was when it was encoded, or None."""
        lines = io.BytesIO(self._file.get_tensor("files").numpy().tobytes())
        marks = (json.loads(line) for line in lines)
        return next((path for path, *mark in marks if file_mark(Path(path)) != mark), None)


class RowRecordsBuild:
    """Records of ``count`` rows in the making. Parts are claimed by processes; a part is stored once its rows are done.

    A stored part promises that every entry it names is on disk: store entries first, then the part.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], count: int) -> None:
        self.folder = make_folder(root, KIND, settings, {})
        self._settings = settings
        self.size = max(1, min(LARGEST_PART, -(-count // PARTS)))
        self._rows = [range(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self._rows)

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return self._rows[part]

    def part_of(self, row: int) -> int:
        """The part that a row is in."""
        return row // self.size

    def claims(self) -> Claims:
        """Claims on the parts, by number."""
        return Claims(self.folder / CLAIMS)

    @property
    def joined(self) -> bool:
        """Whether all is done."""
        return (self.folder / RECORDS).is_file()

    def stored(self) -> set[int]:
        """Numbers of the parts that are done."""
        if self.joined:
            return set(range(self.parts))
        return {int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.json")}

    def has(self, part: int) -> bool:
        """Whether a part is done."""
        return self._part(part).is_file() or self.joined

    def store(self, part: int, records: list[dict[str, Any]], keys: Iterable[str], files: Iterable[list[Any]]) -> None:
        """Keep the records of a part's rows, their entries' keys, and [path, size, time] of their picture files."""
        assert len(records) == len(self._rows[part])
        write_json(self._part(part), {"records": records, "keys": sorted(set(keys)), "files": list(files)})

    def join(self) -> None:
        """Make one file of all parts; does nothing where another process did it."""
        with locked(self.folder / LOCK):
            if not self.joined:
                metadata = {"settings": fingerprint_of_settings(self._settings)}
                with written_whole(self.folder / RECORDS) as partial:
                    write_records(partial, self._read(), metadata)
            for leftover in [*self.folder.glob("part-*.json"), *self.folder.glob(f"*{PARTIAL}")]:
                leftover.unlink(missing_ok=True)

    def discard(self, still_bad: Callable[[RowRecords], str | None]) -> None:
        """Remove finished records for which ``still_bad`` gives a reason; another process may have made new ones."""
        with locked(self.folder / LOCK):
            if self.joined and still_bad(RowRecords(self.folder, self._settings)) is not None:
                (self.folder / RECORDS).unlink()

    def _read(self) -> Iterator[dict[str, Any]]:
        for part in range(self.parts):
            yield json.loads(self._part(part).read_text(encoding="utf-8"))

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.json"


def file_mark(path: Path) -> list[int] | None:
    """Size and time of change in ns; None where there is no such file."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
