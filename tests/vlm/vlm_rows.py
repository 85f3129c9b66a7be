"""Rows and configurations for tiny vision-language runs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.training.config import Config
from mmalign.training.mistakes import ConfigError
from mmalign.training.schema_errors import validate
from mmalign.types import ImageBytes, ImagePart, Message, VLMPair
from mmalign.vlm_data import table_of, write_vlm_canonical

LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return ImageBytes(f"picture {seed}", data=stream.getvalue())


def pairs(number: int = 8, **changes: Any) -> list[VLMPair]:
    """Pairs about one picture each, one about two and one about none; questions and answers of several lengths."""
    rows = []
    for row in range(number):
        images: tuple[ImageBytes, ...] = (picture(row),)
        content: tuple[Any, ...] = (ImagePart(0), f"Number {row}?")
        if row == 1:
            images, content = (picture(row), picture(100 + row)), (ImagePart(0), ImagePart(1), "The same?")
        if row == 2:
            images, content = (), ("Just words?",)
        rows.append(
            VLMPair(
                f"row-{row}", (Message("user", content),), "Yes." + "!" * row, "No, " * (1 + row % 3), images, **changes
            )
        )
    return rows


def config_of(folder: Path, **sections: Any) -> Config:
    """A run of ``folder/model`` on ``folder/rows.parquet``; ``sections`` replace or, for dicts, extend."""
    raw: dict[str, Any] = {
        "family": "vlm",
        "model": {"name": str(folder / "model"), "lora": LORA},
        "data": {"source": "vlm_canonical", "path": str(folder / "rows.parquet")},
        "objective": [{"loss": "dpo", "beta": 0.1}],
        "training": {"steps": 2, "batch_size": 2, "learning_rate": 1e-2},
        "vlm": {"max_length": 256},
        "output": str(folder / "run"),
    }
    for name, value in sections.items():
        extend = isinstance(value, dict) and isinstance(raw.get(name), dict)
        raw[name] = {**raw[name], **value} if extend else value
    config, mistakes = validate(raw)
    if config is None:
        raise ConfigError("test", mistakes)
    return config


def write_rows(folder: Path, rows: list[VLMPair] | None = None) -> Path:
    path = folder / "rows.parquet"
    write_vlm_canonical(table_of(rows or pairs()), path)
    return path
