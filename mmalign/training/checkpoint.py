"""Atomic checkpoints: a folder under its final name is complete, and a failed save leaves the older ones alone.

A save goes to a temporary sibling, is synced to disk with its folder, and is then renamed. ``state.json`` lists the
size of every file, so a folder that was copied or deleted by halves is recognised too.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE = "state.json"
WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
TRAINING = "training.pt"
_TEMPORARY = ".writing-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says which one is still there."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: ``state`` is what ``state.json`` holds."""

    folder: Path
    step: int
    state: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Trained parameters by name, on the CPU."""
        return load_file(self.folder / WEIGHTS)

    def average(self) -> dict[str, Tensor] | None:
        """The moving average of the trained parameters, or None where there was none."""
        path = self.folder / AVERAGE
        return load_file(path) if path.is_file() else None

    def training(self) -> dict[str, Any]:
        """State of optimizer, scaler, objective and meter, on the CPU; nothing in the file is executed."""
        return torch.load(self.folder / TRAINING, map_location="cpu", weights_only=True)


class CheckpointStore:
    """The checkpoints of one run, ``root/step_000050`` and so on. ``say`` tells the user about oddities."""

    def __init__(self, root: Path, *, keep: int, say: Callable[[str], None]) -> None:
        self.root, self.keep, self._say = root, keep, say

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        found = [_read(folder) for folder in self.root.glob("step_*")]
        complete = [checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)]
        return sorted(complete, key=lambda checkpoint: checkpoint.step)

    def newest(self) -> Checkpoint | None:
        """The complete checkpoint of the highest step; each incomplete one is mentioned."""
        for folder in sorted(self.root.glob("step_*")):
            checkpoint = _read(folder)
            if isinstance(checkpoint, str):
                self._say(f"{folder} is left out: {checkpoint}")
        return max(self.all(), key=lambda checkpoint: checkpoint.step, default=None)

    def at(self, step: int) -> Checkpoint | None:
        """The complete checkpoint of ``step``."""
        checkpoint = _read(self.folder(step))
        return checkpoint if isinstance(checkpoint, Checkpoint) else None

    def folder(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lives."""
        return self.root / f"step_{step:06d}"

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None,
        training: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> Path:
        """Write one checkpoint; :class:`CheckpointError` where that fails, with the older ones untouched."""
        final, temporary = self.folder(step), self.root / f"{_TEMPORARY}step_{step:06d}"
        try:
            self._clear_unfinished()
            temporary.mkdir(parents=True)
            save_file(_on_cpu(weights), temporary / WEIGHTS)
            if average is not None:
                save_file(_on_cpu(average), temporary / AVERAGE)
            torch.save(dict(training), temporary / TRAINING)
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            text = json.dumps({"step": step, **state, "files": sizes}, indent=1)
            (temporary / STATE).write_text(text, encoding="utf-8")
            _sync(*temporary.iterdir(), temporary)
            shutil.rmtree(final, ignore_errors=True)  # an incomplete one under this name, or nothing
            temporary.rename(final)
            _sync(self.root)
        # torch reports a full disk as a RuntimeError of its zip writer.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._not_written(final, error)) from error
        return final

    def prune(self, best: int | None) -> None:
        """Delete all but the newest ``keep`` and the best one."""
        for checkpoint in self.all()[: -self.keep]:
            if checkpoint.step != best:
                # Renamed first: a deletion that is cut short leaves nothing under the name of a checkpoint.
                doomed = checkpoint.folder.rename(self.root / f"{_TEMPORARY}{checkpoint.folder.name}")
                shutil.rmtree(doomed)

    def _clear_unfinished(self) -> None:
        for leftover in self.root.glob(f"{_TEMPORARY}*"):
            self._say(f"{leftover} was left by an interrupted run; removing it")
            shutil.rmtree(leftover)

    def _not_written(self, final: Path, error: Exception) -> str:
        older = self.newest()
        kept = f"{older.folder} is intact: make room, then go on with --resume" if older else "there is no older one"
        return f"could not write the checkpoint {final}: {error}; {kept}"


def _read(folder: Path) -> Checkpoint | str:
    """The checkpoint in ``folder``, or what is wrong with it."""
    match = re.fullmatch(r"step_(\d+)", folder.name)
    if match is None:
        return "its name is no step_NUMBER"
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = state["files"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"it is incomplete ({STATE}: {error})"
    for name, size in files:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"it is incomplete ({name} should have {size} bytes)"
    return Checkpoint(folder, int(match[1]), state)


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}


def _sync(*paths: Path) -> None:
    """Flush files and folders to the disk itself, so that a power cut after the rename finds them complete."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            continue  # Windows cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
