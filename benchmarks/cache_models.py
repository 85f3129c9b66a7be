"""What the cache is measured on: the playground's SDXL, and a larger random one that divides its work as SDXL does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.sdxl_models import MID, REAL, costs, count, save_pipeline

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@dataclass(frozen=True)
class Subject:
    """A model and a run of DPO on it: ``steps`` batches of ``batch_size`` out of ``pairs`` noise pictures."""

    name: str
    resolution: int
    pairs: int
    steps: int
    batch_size: int

    def describe(self) -> str:
        """One line for the report."""
        epochs = self.steps * self.batch_size / self.pairs
        return (
            f"{self.pairs} pairs at {self.resolution} px, LoRA of rank 8 in float32, {self.steps} steps of "
            f"{self.batch_size} pairs ({epochs:.1f} epochs)"
        )


PLAYGROUND = Subject("playground/tiny-sdxl", 64, 32, 16, 4)
MID_SIZE = Subject("mid-size random SDXL", MID.resolution, 5, 10, 1)


def prepare(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write pictures (and the model) to ``folder``; the configuration of the run, without cache and output."""
    folder.mkdir(parents=True, exist_ok=True)
    name = subject.name
    if subject is MID_SIZE:
        name = str(save_pipeline(MID, folder / "model"))
    return {
        "model": {"name": name, "lora": {"rank": 8, "alpha": 8}},
        "data": {"source": "images", "path": str(_pictures(subject, folder)), "resolution": subject.resolution},
        "objective": [{"loss": "dpo", "beta": 2000}],
        "training": {"steps": subject.steps, "batch_size": subject.batch_size, "log_every": 1, "learning_rate": 1e-5},
    }


def cost_ratio(subject: Subject | None = None) -> dict[str, float]:
    """Floating-point operations of encoding one picture over those of one forward pass of the UNet; None: real SDXL."""
    if subject is not PLAYGROUND:
        return costs(REAL if subject is None else MID)
    from mmalign.playground.tiny_sdxl import build_unet, build_vae

    with torch.device("meta"):
        return count(build_unet(), build_vae(), PLAYGROUND.resolution, 4)


def _pictures(subject: Subject, folder: Path) -> Path:
    """Pictures of noise as PNG: no two alike, a fifth larger than what is trained on, as photographs mostly are."""
    path, side = folder / "pairs.jsonl", subject.resolution * 6 // 5
    lines = []
    for number in range(subject.pairs):
        names = [f"{number}_{side_name}.png" for side_name in ("chosen", "rejected")]
        for index, name in enumerate(names):
            if not (folder / name).is_file():
                noise = np.random.default_rng(2 * number + index).integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / name)
        prompt = f"a large solid {COLOURS[number % 6]} circle on a {COLOURS[number // 6 % 6]} background"
        lines.append(json.dumps({"prompt": prompt, "chosen": names[0], "rejected": names[1]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
