"""Reads attributes out of pixels with arithmetic only: the sense that the oracle judges by.

A picture of this world is ``background + coverage * (colour - background)``. The background is found on the rim, the
things as connected regions that differ from it, each thing's colour where it differs most, and from these the coverage,
which is compared with the renderer's own pictures of every shape and style. What cannot be told is None.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

from mmalign.playground.regions import find_regions
from mmalign.playground.renderer import BACKGROUND_RGB, COLOUR_RGB, coverage, outline
from mmalign.playground.scene import RADII, SHAPES, SIZES, STYLES, Thing

Picture = np.ndarray | Image.Image

SIDE = 64
"""Pictures are read at this many pixels a side."""
MIN_SIDE = 32

_RIM = 3
_BACKGROUND_TOLERANCE = 45.0
_MIN_RIM_SHARE = 0.6
_FOREGROUND_DISTANCE = 28.0
_MIN_AREA = 24
_MIN_AREA_OF_LARGEST = 0.08
_COLOUR_TOLERANCE = 80.0
_MIN_EXTENT = 4.0
_MIN_LIKENESS = 0.7
# Root mean square distance, in levels, of a thing's pixels from mixtures of its colour and the background.
_MAX_IMPURITY = 60.0
_MAX_SIZE_FACTOR = 1.35
_GRID = 20


@dataclass(frozen=True)
class ThingRead:
    """One thing as it was read: attributes or None, its centre as fractions of the side, and its confidence.

    ``confidence`` is the likeness (a correlation, at most 1) of its coverage and the most alike one of the renderer.
    """

    shape: str | None
    colour: str | None
    size: str | None
    style: str | None
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its background, None where the rim does not agree on one, and its things, largest first."""

    background: str | None
    things: tuple[ThingRead, ...]


def read(image: Picture) -> Reading:
    """The attributes seen in a picture: uint8 [height, width, 3] or PIL, at least MIN_SIDE pixels a side."""
    pixels = _pixels(image)
    name, ground = _read_background(pixels)
    if name is None:
        return Reading(None, ())
    difference = pixels - ground
    regions = find_regions((difference**2).sum(axis=-1) > _FOREGROUND_DISTANCE**2, _MIN_AREA)
    if regions:
        floor = _MIN_AREA_OF_LARGEST * regions[0].sum()
        regions = [region for region in regions if region.sum() >= floor]
    things = (_read_thing(region, difference, ground) for region in regions)
    return Reading(name, tuple(thing for thing in things if thing is not None))


def _pixels(image: Picture) -> np.ndarray:
    """The picture as float32 [SIDE, SIDE, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"the oracle reads uint8 arrays [height, width, 3], not {image.dtype} {list(image.shape)}; "
                "convert with (image * 255).round().astype('uint8'), or pass a PIL image"
            )
        if image.shape[:2] == (SIDE, SIDE):
            return image.astype(np.float32)
        image = Image.fromarray(image)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"the oracle needs at least {MIN_SIDE} pixels a side; this picture has {image.size}")
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        shrinks = min(image.size) > SIDE
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def _read_background(pixels: np.ndarray) -> tuple[str | None, np.ndarray]:
    """The background most of the rim shows, and its colour as measured there."""
    inner = slice(_RIM, -_RIM)
    rim = np.concatenate([pixels[:_RIM].reshape(-1, 3), pixels[-_RIM:].reshape(-1, 3),
                          pixels[inner, :_RIM].reshape(-1, 3), pixels[inner, -_RIM:].reshape(-1, 3)])  # fmt: skip
    near = ((rim[:, None] - _palette(BACKGROUND_RGB)) ** 2).sum(axis=-1) < _BACKGROUND_TOLERANCE**2
    votes = near.mean(axis=0)
    best = int(votes.argmax())
    if votes[best] < _MIN_RIM_SHARE:
        return None, np.zeros(3, np.float32)
    return list(BACKGROUND_RGB)[best], np.median(rim[near[:, best]], axis=0)


def _palette(colours: dict[str, tuple[int, int, int]]) -> np.ndarray:
    return np.array(list(colours.values()), np.float32)


def _read_thing(region: np.ndarray, difference: np.ndarray, ground: np.ndarray) -> ThingRead | None:
    """One region's attributes; None where it holds less than a thing."""
    strength = (difference[region] ** 2).sum(axis=-1)
    strongest = strength >= np.quantile(strength, 0.75)
    towards = np.median(difference[region][strongest], axis=0)
    cover = np.where(region, difference @ (towards / (towards @ towards)), 0).clip(0, 1)
    impurity = float(np.sqrt(((difference - cover[..., None] * towards)[region] ** 2).sum(axis=-1).mean()))
    rows, columns = _extent(cover, axis=1), _extent(cover, axis=0)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    if min(height, width) < _MIN_EXTENT:
        return None
    shape, style, confidence = _match(_resample(cover, rows, columns))
    pure = impurity <= _MAX_IMPURITY
    sure = pure and confidence >= _MIN_LIKENESS
    return ThingRead(
        shape=shape if sure else None,
        colour=_read_colour(ground + towards) if pure else None,
        size=_read_size(shape, height, width) if sure else None,
        style=style if sure else None,
        x=(columns[0] + columns[1]) / 2 / SIDE,
        y=(rows[0] + rows[1]) / 2 / SIDE,
        confidence=confidence,
    )


def _match(patch: np.ndarray) -> tuple[str, str, float]:
    """Shape and style of the most alike of the renderer's pictures, and the correlation with it."""
    templates, names = _templates()
    likeness = templates @ _standardise(patch)
    best = int(likeness.argmax())
    return *names[best], float(likeness[best])


def _extent(cover: np.ndarray, axis: int) -> tuple[float, float]:
    """Where the thing begins and ends along one side, in pixels: lines of half strength and part of the next line."""
    profile = np.sort(cover, axis=axis)
    peak = profile[:, -2:].mean(axis=1) if axis == 1 else profile[-2:].mean(axis=0)
    inside = np.flatnonzero(peak > 0.5)
    if len(inside) == 0:
        return 0.0, 0.0
    first, last = int(inside[0]), int(inside[-1])
    before = float(peak[first - 1]) if first > 0 else 0.0
    after = float(peak[last + 1]) if last + 1 < len(peak) else 0.0
    return first - before, last + 1 + after


def _read_colour(rgb: np.ndarray) -> str | None:
    distance = np.sqrt(((rgb - _palette(COLOUR_RGB)) ** 2).sum(axis=-1))
    best = int(distance.argmin())
    return list(COLOUR_RGB)[best] if distance[best] <= _COLOUR_TOLERANCE else None


def _read_size(shape: str, height: float, width: float) -> str | None:
    """The nearest size on a log scale; None where the thing is far from all."""
    full_width, full_height = np.ptp(outline(shape), axis=0)
    radius = (height / full_height + width / full_width) / 2 / SIDE
    factors = {size: max(radius / RADII[size], RADII[size] / radius) for size in SIZES}
    best = min(SIZES, key=lambda size: factors[size])
    return best if factors[best] <= _MAX_SIZE_FACTOR else None


def _resample(cover: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """The box between ``rows`` and ``columns`` on a _GRID x _GRID grid."""
    return _weights(rows, cover.shape[0]) @ cover @ _weights(columns, cover.shape[1]).T


def _weights(span: tuple[float, float], side: int) -> np.ndarray:
    """Linear interpolation as a matrix [_GRID, side]."""
    at = span[0] + (np.arange(_GRID) + 0.5) * (span[1] - span[0]) / _GRID - 0.5
    reach = max(1.0, (span[1] - span[0]) / _GRID)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(side)) / reach, 0, 1)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)


def _standardise(patch: np.ndarray) -> np.ndarray:
    """Zero mean, unit length: a dot product of two of these is their correlation, and 0 for an even patch.

    The grid is framed by empty cells first, so that a filled square is not even.
    """
    framed = np.pad(patch, 2).ravel()
    framed = framed - framed.mean()
    return framed / max(float(np.linalg.norm(framed)), 1e-6)


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Standardised pictures [n, cells] of every shape, style and size, sharp and soft, and shape and style of each."""
    rows, names = [], []
    for shape, style, size in product(SHAPES, STYLES, SIZES):
        sharp = np.zeros((SIDE, SIDE), np.float32)
        row_span, column_span, patch = coverage(Thing(shape, "red", size), style, SIDE)
        sharp[row_span, column_span] = patch
        for cover in (sharp, _soften(sharp)):
            rows.append(_standardise(_resample(cover, _extent(cover, axis=1), _extent(cover, axis=0))))
            names.append((shape, style))
    return np.stack(rows), names


def _soften(cover: np.ndarray) -> np.ndarray:
    """Blurred by about 0.7 pixels, as decoded pictures are: thin stripes lose contrast but keep their pattern."""
    for axis in (0, 1):
        cover = (np.roll(cover, 1, axis) + 2 * cover + np.roll(cover, -1, axis)) / 4
    return cover
