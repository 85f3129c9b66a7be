"""Small pictures, and rows of Pick-a-Pic, that tests make for themselves."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIXTURE = Path(__file__).parent / "fixtures" / "photo_pairs_small.parquet"


def png(width: int = 16, height: int = 16, seed: int = 0) -> bytes:
    """A noise picture: no two seeds alike, and no codec loss."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def row(number: int, label_0: float | None = 1.0, **columns: Any) -> dict[str, Any]:
    """One row with the five needed columns; label_1 = 1 - label_0."""
    return {
        "caption": f"prompt {number}",
        "jpg_0": png(seed=2 * number),
        "jpg_1": png(seed=2 * number + 1),
        "label_0": label_0,
        "label_1": None if label_0 is None else 1.0 - label_0,
        **columns,
    }
