"""What ``benchmarks.diffusion`` trains, and on which rows: random weights and a shard in Pick-a-Pic's columns."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.sdxl_models import ENCODING, MID, REAL, TINY, Shape, save_pipeline
from mmalign.training.order import stable_hash

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
BETA, MAPO_BETA, SNR, RATE, DECAY, CLIP, SEED = 5000, 0.1, 0.5, 1e-5, 1e-2, 1.0, 0


@dataclass(frozen=True)
class Profile:
    """One model and how it is trained. ``warm_up`` steps are not timed, ``steps`` are.

    ``tolerance``: how far losses and norms of gradients of two implementations may be apart, relatively.
    """

    name: str
    shape: Shape
    batch_size: int = 1
    rank: int = 8
    precision: str = "no"
    device: str = "cpu"
    checkpointing: bool = False
    compiled: bool = False
    tolerance: float = 1e-3
    warm_up: int = 1
    steps: int = 3
    repetitions: int = 3

    @property
    def rows(self) -> int:
        """Rows for one run: none comes twice, and one batch more than is timed has to be read."""
        return (self.warm_up + self.steps + 1) * self.batch_size


_GPU: dict[str, Any] = {"precision": "bf16", "device": "cuda", "tolerance": 1e-2, "warm_up": 5, "steps": 20}
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("tiny", TINY, batch_size=2, steps=2, repetitions=2),
        Profile("tiny-gpu", TINY, precision="bf16", checkpointing=True, steps=2, repetitions=1),
        Profile("check", ENCODING, batch_size=2, steps=3),
        Profile("mid", MID),
        Profile("sdxl-lora", REAL, batch_size=1, rank=16, **_GPU),
        Profile("sdxl-lora-checkpointed", REAL, batch_size=4, rank=16, checkpointing=True, **_GPU),
        Profile("sdxl-full", REAL, batch_size=8, checkpointing=True, **_GPU),
    )
}


def prepare(profile: Profile, folder: Path) -> tuple[Path, Path]:
    """(model, data): the pipeline's folder and the folder ``pickapic`` with one parquet file, written where missing."""
    model = save_pipeline(profile.shape, folder / "model", device=profile.device)
    data = folder / f"pickapic-{profile.rows}"
    if not data.is_dir():
        fresh = data.with_name(f"{data.name}.new")
        fresh.mkdir(exist_ok=True)
        write_shard(fresh / "train-00000.parquet", profile.rows, profile.shape.resolution)
        fresh.replace(data)
    return model, data


def write_shard(path: Path, rows: int, side: int, *, pictures: int | None = None, captions: int | None = None) -> Path:
    """A parquet file as Pick-a-Pic's: JPEG bytes of both pictures, labels, a caption.

    Pictures are coarse noise of ``side`` pixels, which every reader takes as they are; no two alike, or
    ``pictures`` of them in turn, and likewise ``captions``. Every second row prefers the second picture.
    """
    kinds = 2 * rows if pictures is None else pictures
    jpegs = [_jpeg(number, side) for number in range(kinds)]
    table = pa.table(
        {
            "caption": [_caption(row % (captions or rows)) for row in range(rows)],
            "jpg_0": [jpegs[2 * row % kinds] for row in range(rows)],
            "jpg_1": [jpegs[(2 * row + 1) % kinds] for row in range(rows)],
            "label_0": [float(row % 2 == 0) for row in range(rows)],
            "label_1": [float(row % 2 == 1) for row in range(rows)],
            "image_0_uid": [f"{row}-0" for row in range(rows)],
            "image_1_uid": [f"{row}-1" for row in range(rows)],
            "has_label": [True] * rows,
        }
    )
    pq.write_table(table, path, row_group_size=256)
    return path


def _caption(number: int) -> str:
    return f"a {COLOURS[number % 6]} thing on {COLOURS[number // 6 % 6]} ground, number {number}"


def _jpeg(number: int, side: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def forced_noise(row: int, shape: torch.Size) -> torch.Tensor:
    """The noise that every side sees at row ``row`` of a check."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + row))


def forced_timestep(row: int) -> int:
    """The timestep of that row."""
    return (211 + 337 * row) % 1000


def moved(module: torch.nn.Module, *, lora: bool) -> None:
    """Move the trained weights away from where they start, by values that follow from their names alone.

    Otherwise policy and reference were equal, and DPO's loss log 2 whatever the data.
    """
    for name, parameter in module.named_parameters():
        place, _, matrix = name.partition(".lora_")
        if lora and (not matrix or not parameter.requires_grad):
            continue
        generator = torch.Generator().manual_seed(stable_hash(place, matrix[:1]))
        values = torch.randn(parameter.shape, generator=generator).to(parameter)
        if lora:
            parameter.data.copy_(values * (0.02 if matrix[0] == "B" else parameter.shape[1] ** -0.5))
        else:
            parameter.data.add_(values * 0.02 * parameter.data.std(correction=0))
