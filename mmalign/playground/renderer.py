"""Paints a scene: ``colour = background + coverage * (colour - background)``, anti-aliased, the same bits every time.

Every shape is a table of signed distances on the unit square, made once; a picture looks its pixels up in that table,
so painting costs a few array operations per thing at any resolution.
"""

from functools import lru_cache

import numpy as np

from mmalign.playground.scene import SHAPES, STYLES, Scene, Thing

COLOUR_RGB = {
    "red": (222, 40, 44),
    "orange": (250, 138, 20),
    "yellow": (252, 208, 32),
    "green": (38, 164, 76),
    "cyan": (46, 196, 214),
    "blue": (40, 92, 226),
    "purple": (128, 54, 176),
    "pink": (246, 84, 164),
}
BACKGROUND_RGB = {
    "white": (246, 246, 244),
    "black": (22, 22, 26),
    "grey": (172, 174, 180),
    "cream": (248, 226, 172),
    "navy": (28, 44, 92),
    "brown": (104, 70, 50),
}

HOLLOW_WIDTH = 0.27
"""Width of a hollow thing's ring, as a fraction of its radius."""
STRIPE_PERIOD = 0.8
"""A stripe and a gap, as a fraction of the radius: a thing shows three stripes and two gaps."""
GAP_COVERAGE = 0.35
"""Between stripes the colour stays at this strength, so that a striped thing keeps its silhouette."""

_TABLE_SIDE = 512
_TABLE_REACH = 1.4


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The scene as a uint8 array [size, size, 3]."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUND_RGB[scene.background]
    for thing in scene.things:
        rows, columns, cover = coverage(thing, scene.style, size)
        patch = picture[rows, columns]
        patch += cover[..., None] * (np.asarray(COLOUR_RGB[thing.colour], np.float32) - patch)
    return (picture + 0.5).astype(np.uint8)


def coverage(thing: Thing, style: str, size: int) -> tuple[slice, slice, np.ndarray]:
    """Rows, columns and how much of each of these pixels the thing covers, in [0, 1]."""
    radius = thing.radius * size
    columns, across = _span(thing.x * size, radius, size)
    rows, down = _span(thing.y * size, radius, size)
    distance = _distance_table(thing.shape)[np.ix_(_table_index(down), _table_index(across))] * radius
    cover = np.clip(0.5 - distance, 0, 1)
    if style == "hollow":
        cover *= np.clip(0.5 + distance + HOLLOW_WIDTH * radius, 0, 1)
    elif style == "striped":
        cover *= _stripes(down, radius)[:, None]
    elif style != "solid":
        raise ValueError(f"style {style!r} is unknown; choose one of {', '.join(STYLES)}")
    return rows, columns, cover


def _stripes(down: np.ndarray, radius: float) -> np.ndarray:
    """Strength of the colour per row: 1 on a stripe, GAP_COVERAGE between two; a stripe lies on the centre."""
    from_stripe = np.abs((down / STRIPE_PERIOD + 0.5) % 1 - 0.5) * STRIPE_PERIOD
    inside = np.clip((STRIPE_PERIOD / 4 - from_stripe) * radius + 0.5, 0, 1)
    return GAP_COVERAGE + (1 - GAP_COVERAGE) * inside


def _span(centre: float, radius: float, size: int) -> tuple[slice, np.ndarray]:
    """The pixels a thing may touch along one axis, and their positions in units of the radius."""
    first = max(0, int(centre - radius - 2))
    last = min(size, int(centre + radius + 3))
    return slice(first, last), ((np.arange(first, last) + 0.5 - centre) / radius).astype(np.float32)


def _table_index(position: np.ndarray) -> np.ndarray:
    index = (position / _TABLE_REACH + 1) * (_TABLE_SIDE / 2)
    return np.clip(index, 0, _TABLE_SIDE - 1).astype(np.intp)


@lru_cache
def _distance_table(shape: str) -> np.ndarray:
    """Signed distance to the outline (negative inside) in units of the radius, [rows, columns] over +-_TABLE_REACH."""
    axis = ((np.arange(_TABLE_SIDE) + 0.5) / (_TABLE_SIDE / 2) - 1) * _TABLE_REACH
    x, y = np.meshgrid(axis, axis)
    corners = outline(shape)
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
        if ay != by:
            # Even-odd rule: a ray to the right crosses this edge.
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return np.where(inside, -nearest, nearest).astype(np.float32)


def outline(shape: str) -> np.ndarray:
    """Corners [n, 2] of a shape that fills the square from -1 to 1, y downwards."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if shape == "circle":
        return np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if shape == "square":
        return np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])
    if shape == "triangle":
        return np.array([(0, -0.95), (1.05, 0.9), (-1.05, 0.9)])
    if shape == "star":
        angle = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.56, 1.12)
        return np.stack([reach * np.sin(angle), 0.08 - reach * np.cos(angle)], axis=1)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x / 16, -(y + 2.5) / 14.6], axis=1)
    if shape == "cross":
        arm = 0.42
        quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
        turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
        return np.concatenate([quarter, *(quarter @ rotation for rotation in turns)])
    raise ValueError(f"shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
