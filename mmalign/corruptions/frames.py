"""Corruptions of the frames of a video: order and choice; PaMi-VDPO (arXiv 2504.05810) augments clips so.

Their names begin with ``frame_``, so that ``shuffle`` (patches of a picture) and ``frame_shuffle`` stay two things.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image

from mmalign.corruptions.geometry import crop_box
from mmalign.corruptions.pixels import integer, within

Frames = list[Image.Image]


def shuffle_frames(frames: Sequence[Image.Image], generator: torch.Generator) -> Frames:
    """Another order: drawn until it differs from the given one. ValueError for fewer than two frames."""
    _several(frames)
    while True:
        order = torch.randperm(len(frames), generator=generator).tolist()
        if order != list(range(len(frames))):
            return [frames[place] for place in order]


def reverse_frames(frames: Sequence[Image.Image], _generator: torch.Generator) -> Frames:
    """Last to first. Draws nothing."""
    _several(frames)
    return list(frames[::-1])


def drop_frames(frames: Sequence[Image.Image], generator: torch.Generator, *, share: float = 0.5) -> Frames:
    """round(``share`` x number) frames replaced by the kept frame before them (or the first kept): the length stays."""
    _several(frames)
    within("share", share, 0, 1, above=True)
    gone = min(round(share * len(frames)), len(frames) - 1)
    dropped = set(torch.randperm(len(frames), generator=generator)[:gone].tolist())
    kept = [place for place in range(len(frames)) if place not in dropped]
    return [frames[max((k for k in kept if k <= place), default=kept[0])] for place in range(len(frames))]


def crop_clip(frames: Sequence[Image.Image], generator: torch.Generator, *, share: float = 0.25) -> Frames:
    """A stretch of ``share`` of the time, its frames held so that the length stays: what else happened is gone."""
    _several(frames)
    within("share", share, 0, 1, above=True)
    length = max(1, round(share * len(frames)))
    start = integer(generator, len(frames) - length + 1)
    return [frames[start + place * length // len(frames)] for place in range(len(frames))]


def crop_frames(
    frames: Sequence[Image.Image], generator: torch.Generator, *, scale: tuple[float, float] = (0.01, 0.2)
) -> Frames:
    """The same random piece of every frame, enlarged to its size, as ``random_crop`` of a picture."""
    if not frames:
        raise ValueError("a video without frames cannot be cropped")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale={scale!r} must be two numbers in order, above 0 and at most 1")
    left, top, width, height = crop_box(frames[0].size, generator, scale, (3 / 4, 4 / 3))
    box = (left, top, left + width, top + height)
    return [frame.resize(frame.size, Image.Resampling.BILINEAR, box=box) for frame in frames]


def _several(frames: Sequence[Image.Image]) -> None:
    if len(frames) < 2:
        raise ValueError(f"a video of {len(frames)} frames has no order; at least two are needed")


VIDEO_CORRUPTIONS: Mapping[str, Callable[..., Frames]] = {
    "frame_shuffle": shuffle_frames,
    "frame_reverse": reverse_frames,
    "frame_drop": drop_frames,
    "frame_clip": crop_clip,
    "frame_crop": crop_frames,
}
