"""Pictures made wrong on purpose: the same generator and picture give the same bytes, and the size stays.

``corrupt(image, name, generator, **parameters)`` is pure. Policy and reference, and every epoch's cache, see the same
corrupted picture when the generator is made of (seed, sample, epoch), as ``RowKey.generator`` does.

``blank_mean``, ``blank_zero`` and no picture at all are three different negatives. The last is no picture, so it is no
corruption: a branch ``@null`` (``NO_IMAGE``) leaves the picture's part out of the prompt. Retrieved pictures come from
``RetrievalIndex``.

``corrupt_video`` takes the frames of a video: a key of ``VIDEO_CORRUPTIONS`` changes their order or choice, one of
``CORRUPTIONS`` every frame in the same way.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from mmalign.corruptions.captions import flip_makes_wrong, told_sides
from mmalign.corruptions.collages import COLLAGES, Collage
from mmalign.corruptions.colour import colour
from mmalign.corruptions.frames import VIDEO_CORRUPTIONS, Frames
from mmalign.corruptions.geometry import (
    blank_mean,
    blank_zero,
    block_mask,
    flip,
    patch_mask,
    patch_shuffle,
    random_crop,
)
from mmalign.corruptions.noise import alpha_bars, diffusion_noise, gaussian_blur
from mmalign.corruptions.retrieval import RetrievalIndex

NO_IMAGE = "null"  # what stands behind the @ of a branch whose prompt has no picture

CORRUPTIONS: Mapping[str, Callable[..., Image.Image]] = {
    "crop": random_crop,
    "noise": diffusion_noise,
    "blur": gaussian_blur,
    "patch_mask": patch_mask,
    "block_mask": block_mask,
    "blank_mean": blank_mean,
    "blank_zero": blank_zero,
    "shuffle": patch_shuffle,
    "colour": colour,
    "flip": flip,
}


def corrupt(image: Image.Image, name: str, generator: torch.Generator, **parameters: Any) -> Image.Image:
    """``image`` (RGB) under the corruption ``name``, a key of ``CORRUPTIONS``, in the same size.

    Raises ValueError for an unknown name, a parameter that it does not have, or a value outside its range.
    """
    _known(name, parameters, CORRUPTIONS, "pictures")
    return CORRUPTIONS[name](image, generator, **parameters)


def corrupt_video(frames: Sequence[Image.Image], name: str, generator: torch.Generator, **parameters: Any) -> Frames:
    """The frames under the corruption ``name`` of videos or of pictures, as many and as large as before.

    A corruption of pictures draws the same for every frame: one piece for a crop, one pattern of noise. Raises
    ValueError as :func:`corrupt` does.
    """
    if name in CORRUPTIONS:
        state = generator.get_state()
        changed = []
        for frame in frames:
            generator.set_state(state)
            changed.append(corrupt(frame, name, generator, **parameters))
        return changed
    _known(name, parameters, {**CORRUPTIONS, **VIDEO_CORRUPTIONS}, "videos")
    return VIDEO_CORRUPTIONS[name](frames, generator, **parameters)


def check(name: str, parameters: Mapping[str, Any]) -> None:
    """ValueError unless ``name`` is a corruption and has all ``parameters``, in their ranges; no picture is needed.

    What depends on a picture's size (a patch larger than it) only shows on that picture.
    """
    _known(name, parameters, {**CORRUPTIONS, **VIDEO_CORRUPTIONS}, "pictures or videos")
    patch = parameters.get("patch")
    side = 2 * patch if isinstance(patch, int) and 32 < patch <= 4096 else 64
    try:
        corrupt_video([Image.new("RGB", (side, side))] * 2, name, torch.Generator().manual_seed(0), **parameters)
    except TypeError as error:
        raise ValueError(f"{name}: {dict(parameters)} holds a value of another type than it takes ({error})") from error


def _known(name: str, parameters: Mapping[str, Any], allowed: Mapping[str, Callable[..., Any]], what: str) -> None:
    if name not in allowed:
        raise ValueError(f"{name!r} is no corruption of {what}; choose one of {', '.join(allowed)}")
    known = defaults(name)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")


def defaults(name: str) -> dict[str, Any]:
    """Parameters of the corruption ``name`` (of pictures or videos) with their default values."""
    made: Callable[..., Any] = CORRUPTIONS[name] if name in CORRUPTIONS else VIDEO_CORRUPTIONS[name]
    signature = inspect.signature(made)
    return {key: value.default for key, value in signature.parameters.items() if value.kind is value.KEYWORD_ONLY}


__all__ = [
    "COLLAGES",
    "CORRUPTIONS",
    "NO_IMAGE",
    "VIDEO_CORRUPTIONS",
    "Collage",
    "RetrievalIndex",
    "alpha_bars",
    "check",
    "corrupt",
    "corrupt_video",
    "defaults",
    "flip_makes_wrong",
    "told_sides",
]
