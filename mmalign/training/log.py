"""``log.jsonl``: one JSON object per logged step, and per held-out measurement (``"split": "held_out"``)."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.training.task import HELD_OUT


class Log:
    """The lines of a run, kept in memory and, where ``path`` is given, appended to a file as they come."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []

    @property
    def training(self) -> list[dict[str, Any]]:
        """Lines of training steps."""
        return [line for line in self.lines if "split" not in line]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """Lines of held-out measurements."""
        return [line for line in self.lines if line.get("split") == HELD_OUT]

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, because JSON has none."""
        clean = _finite(dict(line))
        self.lines.append(clean)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Bring the file to the disk, so that it never lags behind a checkpoint."""
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, path: Path, step: int) -> None:
        """Go back to what ``path`` held at ``step`` (-1: nothing): later lines, and half a last line, are dropped."""
        self.lines = [line for line in _read_lines(path) if line["step"] <= step]
        if self._path is not None:
            temporary = self._path.with_suffix(".rewinding")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            temporary.replace(self._path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # a killed run leaves half a line, always the last
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
