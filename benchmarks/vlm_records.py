"""What the VLM benchmarks keep of a comparison, how seeds are pooled, and how it is written down."""

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.evaluation.vlm_playground import Comparison

RESULTS = Path("benchmarks/results")
COLUMNS = {
    "hallucination_rate": "hallucination rate",
    "wrong_objects": "wrong objects",
    "object_recall": "object recall",
    "attribute_recall": "attribute recall",
    "words": "words",
    "accuracy": "accuracy",
    "yes_ratio": "yes ratio",
}
"""Measures that are kept of every comparison -> their titles."""
# 97.5 % quantiles of Student's t by degrees of freedom: seeds are few.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def kept(comparison: Comparison) -> dict[str, list[float]]:
    """Measure -> base, aligned, difference, and its 95 % interval over pictures."""
    found = {}
    for name in COLUMNS:
        change = comparison.measures[name]
        difference = change.difference
        values = (change.base.value, change.aligned.value, difference.value, difference.low, difference.high)
        found[name] = [round(value, 4) for value in values]
    return found


def pooled(rows: Sequence[dict[str, list[float]]], name: str) -> str:
    """Base -> aligned, mean over seeds, and the difference with a 95 % interval.

    One seed: over pictures. More: over seeds (Student's t), which covers pictures, pairs and training.
    """
    values = np.array([row[name] for row in rows])
    before, after, change = values[:, :3].mean(axis=0)
    if len(rows) == 1:
        low, high = values[0, 3:]
    else:
        half = _T[len(rows) - 1] * values[:, 2].std(ddof=1) / math.sqrt(len(rows))
        low, high = change - half, change + half
    return f"{before:.3f} -> {after:.3f} ({change:+.3f} [{low:+.3f}, {high:+.3f}])"


def read(path: Path) -> Any:
    """The record at ``path``; None where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def commit() -> str:
    """The commit of the checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
