"""The frames of a video that a model is shown: some of them, evenly spaced, from a file or from pictures."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.data.decoding import decode, upright_rgb
from mmalign.types import Clip, Video

ASSUMED_FPS = 2.0
"""Frames per second of a video that tells none: what Qwen's processors sample files at."""
_ANIMATED = (".gif", ".webp", ".png", ".apng")  # what Pillow decodes


def clip_of(video: Video, frames: int) -> Clip:
    """At most ``frames`` frames of ``video``: numbers round(i (n - 1) / (frames - 1)) of its n; all, where n is less.

    ``fps`` is that of the frames shown (fps of the video x shown / n). GIF, WebP and APNG are decoded by Pillow, other
    files by PyAV (``pip install "mmalign[video]"``). Raises ValueError where a file cannot be decoded.
    """
    if frames < 1:
        raise ValueError(f"frames={frames} must be at least 1")
    if video.path is None:
        chosen = [decode(video.frames[place]) for place in spread(len(video.frames), frames)]
        return Clip(tuple(chosen), (video.fps or ASSUMED_FPS) * len(chosen) / len(video.frames))
    if not video.path.is_file():
        raise ValueError(f"{video.origin}: file not found: {video.path}")
    shown, number, rate = (_animated if video.path.suffix.lower() in _ANIMATED else _film)(video.path, frames)
    if not shown:
        raise ValueError(f"{video.origin}: {video.path} holds no frame")
    return Clip(tuple(shown), (video.fps or rate or ASSUMED_FPS) * len(shown) / number)


def spread(number: int, wanted: int) -> list[int]:
    """``wanted`` of 0 .. ``number`` - 1, first and last among them, evenly spaced; all where there are fewer."""
    if number <= wanted:
        return list(range(number))
    if wanted == 1:
        return [number // 2]
    return [int(place) for place in np.linspace(0, number - 1, wanted).round()]


def _animated(path: Path, wanted: int) -> tuple[list[Image.Image], int, float | None]:
    """(frames, how many the file has, frames per second by the mean of what they are shown for, where it is told)."""
    try:
        with Image.open(path) as opened:
            number = getattr(opened, "n_frames", 1)
            chosen, milliseconds, kept = set(spread(number, wanted)), 0.0, []
            for place in range(number):
                opened.seek(place)
                milliseconds += float(opened.info.get("duration") or 0)
                if place in chosen:
                    kept.append(upright_rgb(opened.copy()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no video that can be decoded ({type(error).__name__}: {error})") from error
    return kept, number, 1000 * number / milliseconds if milliseconds else None


def _film(path: Path, wanted: int) -> tuple[list[Image.Image], int, float | None]:
    try:
        av: Any = importlib.import_module("av")
    except ImportError as error:
        raise ValueError(
            f"{path}: {path.suffix} files are decoded by PyAV, which is not installed; give the video as a list of "
            'frames, or pip install "mmalign[video]"'
        ) from error
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
            number = sum(1 for _ in _decoded(container))  # containers often tell no number, or a wrong one
        chosen = set(spread(number, wanted))
        with av.open(str(path)) as container:
            kept = [
                frame.to_image().convert("RGB") for place, frame in enumerate(_decoded(container)) if place in chosen
            ]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is no video that can be decoded ({type(error).__name__}: {error})") from error
    return kept, number, float(rate) if rate else None


def _decoded(container: Any) -> Iterator[Any]:
    return container.decode(video=0) if container.streams.video else iter(())
