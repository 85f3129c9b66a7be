"""What the terminal shows: a bar with time left, loss and accuracy; plain lines where it is not a terminal."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Use as a context. ``visible=False`` (every process but the main one) shows nothing."""

    def __init__(self, console: Console, *, start: int, total: int, visible: bool) -> None:
        self._console = console
        self._visible = visible
        self._start, self._total = start, total
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "TrainingProgress":
        if self._visible and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, completed=self._start, numbers="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._visible:
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int) -> None:
        """One more optimizer step is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def numbers(self, line: Mapping[str, Any]) -> None:
        """Show a logged line's loss and accuracy."""
        text = "  ".join(f"{name} {line[name]:.4g}" for name in ("loss", "accuracy") if line.get(name) is not None)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, numbers=text)
            return
        now, step = time.monotonic(), line["step"]
        if now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = now
            self.say(f"step {step}/{self._total}  {text}  {self._time_left(step, now)}".rstrip())

    def _time_left(self, step: int, now: float) -> str:
        if step <= self._start or step >= self._total:
            return ""
        seconds = (now - self._began) / (step - self._start) * (self._total - step)
        return f"{timedelta(seconds=round(seconds))} left"
