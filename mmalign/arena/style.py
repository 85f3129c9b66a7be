"""How pictures look at a glance, and how long answers are, as covariates: neither alone should win a vote."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmalign.arena.types import Vote

_LUMA = np.array([0.299, 0.587, 0.114])


def picture_style(picture: Image.Image) -> dict[str, float]:
    """Four measures in [0, 1] of an RGB picture, of luma y = 0.299 R + 0.587 G + 0.114 B.

    ``brightness``: mean of y. ``contrast``: standard deviation of y. ``saturation``: mean of max - min over channels.
    ``sharpness``: root mean square of the differences of neighbouring y (pictures of one size compare best).
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    luma: NDArray[np.float64] = pixels @ _LUMA
    steps = [np.diff(luma, axis=axis).ravel() for axis in (0, 1)]
    edges = np.concatenate(steps)
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float((pixels.max(-1) - pixels.min(-1)).mean()),
        "sharpness": float(np.sqrt(np.mean(edges**2))) if edges.size else 0.0,
    }


def answer_style(answer: str) -> dict[str, float]:
    """``length``: log(1 + words). Longer answers are often preferred for their length."""
    return {"length": math.log1p(len(answer.split()))}


def measure_style(votes: Iterable[Vote], folder: str | Path) -> dict[str, dict[str, float]]:
    """``Side.shows`` -> the style of every picture, or every answer, that was voted on.

    Relative files start from ``folder``. Raises ValueError, naming the file, for a picture that cannot be read, and for
    votes on pictures together with votes on answers, which have no style in common.
    """
    root = Path(folder).expanduser()
    measured: dict[str, dict[str, float]] = {}
    kinds = set()
    for vote in votes:
        kinds.add(vote.battle.kind)
        if len(kinds) > 1:
            raise ValueError("some votes are on pictures and some on answers, which have no style in common")
        for side in vote.battle.sides:
            if side.shows in measured:
                continue
            if side.answer is not None:
                measured[side.shows] = answer_style(side.answer)
                continue
            try:
                with Image.open(root / side.file) as picture:
                    measured[side.shows] = picture_style(picture)
            except OSError as error:
                raise ValueError(f"{root / side.file}: cannot be read ({error}); style needs every picture") from error
    return measured
