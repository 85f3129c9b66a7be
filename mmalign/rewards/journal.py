"""Scores as they come, on the disk after every batch, so that a killed job goes on where it was."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOURNAL = ".unfinished"


class Journal:
    """An append-only file beside ``out``: what is being scored, then one line a picture. The result replaces it."""

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        """Open or continue. ValueError where the file belongs to a job with other pictures, rewards or settings."""
        self.path = out.with_name(out.name + JOURNAL)
        self.rows: list[dict[str, Any]] = []
        out.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._continue(job)
        self._stream = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size == 0:
            self._write([job])

    def _continue(self, job: Mapping[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # killed in the middle of a line: that batch is done again
        lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
        known = json.loads(json.dumps(job))
        if lines and lines[0] != known:
            differ = sorted(key for key in {*lines[0], *known} if lines[0].get(key) != known.get(key))
            raise ValueError(
                f"{self.path} holds the beginning of another job ({', '.join(differ)} differ). Repeat that job to "
                "finish it, delete the file, or give another --out"
            )
        if len(whole) != len(content):
            os.truncate(self.path, len(whole))
        self.rows = lines[1:]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; they are on the disk when this returns."""
        self._write(rows)
        self.rows.extend(dict(row) for row in rows)

    def close(self) -> None:
        """Leave the file for later."""
        self._stream.close()

    def remove(self) -> None:
        """The result is written; the journal is no longer needed."""
        self._stream.close()
        self.path.unlink()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._stream.flush()
        os.fsync(self._stream.fileno())
