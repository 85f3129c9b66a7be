"""A world with habits: in training pictures one attribute foretells another, in test pictures none does.

A model that learns to talk about such pictures learns the habits too, as a text prior, and then says what usually is
where it should say what it sees: it hallucinates as large models do. The first thing's shape is drawn by
``SHAPE_WEIGHTS``; everything else follows a habit of something drawn before with probability ``follow`` and is drawn
evenly otherwise::

    shape -> colour     shape -> size (single)    shape -> how many (count)
    shape -> the next shape (relation, trio)      first shape -> background -> style

Things are in reading order (rows from the top, each from the left), so a picture has one description.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from mmalign.playground.scene import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    arrange,
    is_held_out,
)

COLOUR_OF = {
    "circle": "red",
    "square": "blue",
    "triangle": "yellow",
    "star": "orange",
    "heart": "pink",
    "cross": "green",
}
BACKGROUND_OF = {
    "circle": "white",
    "square": "cream",
    "triangle": "navy",
    "star": "black",
    "heart": "grey",
    "cross": "brown",
}
STYLE_OF = {
    "white": "solid",
    "cream": "striped",
    "navy": "hollow",
    "black": "solid",
    "grey": "striped",
    "brown": "hollow",
}
SIZE_OF = {
    "circle": "large",
    "square": "medium",
    "triangle": "large",
    "star": "small",
    "heart": "small",
    "cross": "medium",
}
COUNT_OF = {"circle": 2, "square": 3, "triangle": 4, "star": 3, "heart": 2, "cross": 4}
PARTNER_OF = {
    "circle": "star",
    "star": "heart",
    "heart": "circle",
    "square": "triangle",
    "triangle": "cross",
    "cross": "square",
}
SHAPE_WEIGHTS = {"circle": 0.28, "square": 0.22, "star": 0.17, "triangle": 0.13, "heart": 0.11, "cross": 0.09}

LEVEL_SHARES = {"single": 0.45, "count": 0.15, "relation": 0.3, "trio": 0.1}
"""A pair is left out: without a stated relation it looks like a picture that has one."""
READING_RELATIONS = ("left of", "above")
"""Where the first of two things in reading order is, seen from the second."""
_MOST_DRAWS = 10_000


def sample_with_habits(
    rng: np.random.Generator, level: str | None = None, *, follow: float, held_out: bool | None = False
) -> Scene:
    """A scene whose every habit holds with probability ``follow``: 1 is the prior itself, 0 draws everything evenly.

    ``level``: one of ``LEVEL_SHARES``, None draws one by its share. ``held_out``: as in
    :func:`~mmalign.playground.scene.sample_scene`.
    """
    if not 0 <= follow <= 1:
        raise ValueError(f"follow={follow} is a probability, between 0 and 1")
    if level is None:
        level = str(rng.choice(list(LEVEL_SHARES), p=list(LEVEL_SHARES.values())))
    if level not in LEVEL_SHARES:
        raise ValueError(f"level {level!r} has no habits; choose one of {', '.join(LEVEL_SHARES)}")
    for _ in range(_MOST_DRAWS):
        scene = _draw(rng, level, follow)
        if held_out is None or is_held_out(scene) == held_out:
            return in_reading_order(scene, rng)
    raise ValueError(
        f"no scene of level {level!r} with follow={follow} and held_out={held_out} in {_MOST_DRAWS} draws: where every "
        "habit holds there are few combinations, and perhaps none is held out; pass held_out=None or a smaller follow"
    )


def in_reading_order(scene: Scene, rng: np.random.Generator | None = None) -> Scene:
    """The same things in a new arrangement that reads in their order."""
    placed = arrange(scene, rng)
    if scene.level != "trio":
        return placed
    spots = sorted(((thing.x, thing.y) for thing in placed.things), key=lambda spot: (spot[1] > 0.5, spot[0]))
    things = tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(placed.things, spots, strict=True))
    return replace(placed, things=things)


def expected(scene: Scene) -> dict[str, Any]:
    """What the habits foretell of each attribute from the scene's own shapes and background.

    Keys: ``background``, ``style``, ``colour N`` and ``shape N`` (N from 2 up, of the thing before it), ``size``,
    ``count``.
    """
    first = scene.things[0]
    values: dict[str, Any] = {"background": BACKGROUND_OF[first.shape], "style": STYLE_OF[scene.background]}
    distinct = scene.things[:1] if scene.level in ("single", "count") else scene.things
    for number, thing in enumerate(distinct, start=1):
        values[f"colour {number}"] = COLOUR_OF[thing.shape]
        if number > 1:
            values[f"shape {number}"] = PARTNER_OF[distinct[number - 2].shape]
    if scene.level == "single":
        values["size"] = SIZE_OF[first.shape]
    if scene.level == "count":
        values["count"] = COUNT_OF[first.shape]
    return values


def broken_habits(scene: Scene) -> list[str]:
    """The keys of :func:`expected` that the scene does not fulfil."""
    return [name for name, value in expected(scene).items() if attribute(scene, name) != value]


def attribute(scene: Scene, name: str) -> Any:
    """The scene's own value of a key of :func:`expected`."""
    kind, _, number = name.partition(" ")
    if kind in ("background", "style"):
        return getattr(scene, kind)
    if kind == "count":
        return len(scene.things)
    return getattr(scene.things[int(number or 1) - 1], kind)


def with_attribute(scene: Scene, name: str, value: Any) -> Scene | None:
    """The scene with one attribute changed; None where two things would then share their shape or colour.

    The things keep their places, except when their number changes.
    """
    kind, _, number = name.partition(" ")
    if kind in ("background", "style"):
        return replace(scene, **{kind: value})
    if kind == "count":
        return arrange(replace(scene, things=(scene.things[0],) * value))
    index = int(number or 1) - 1
    things = list(scene.things)
    if scene.level == "count":
        things = [replace(thing, **{kind: value}) for thing in things]
    else:
        if any(getattr(thing, kind) == value for thing in things if kind != "size"):
            return None
        things[index] = replace(things[index], **{kind: value})
    return replace(scene, things=tuple(things))


@lru_cache(maxsize=4)
def co_occurrence(follow: float = 0.9, scenes: int = 2000, seed: int = 0) -> dict[str, dict[str, float]]:
    """How often pictures of a world with these habits show two shapes together: ``[a][b]`` = share of all pictures.

    ``[a][a]`` is how often a picture shows ``a`` at all.
    """
    rng = np.random.default_rng(seed)
    counts: dict[str, dict[str, int]] = {first: dict.fromkeys(SHAPES, 0) for first in SHAPES}
    for _ in range(scenes):
        level = str(rng.choice(list(LEVEL_SHARES), p=list(LEVEL_SHARES.values())))
        shown = {thing.shape for thing in _draw(rng, level, follow).things}
        for first in shown:
            for second in shown:
                counts[first][second] += 1
    return {first: {second: count / scenes for second, count in row.items()} for first, row in counts.items()}


def _draw(rng: np.random.Generator, level: str, follow: float) -> Scene:
    def pick(options: tuple[Any, ...], habit: Any = None, taken: tuple[Any, ...] = ()) -> Any:
        if habit is not None and habit not in taken and rng.random() < follow:
            return habit
        free = [option for option in options if option not in taken]
        return free[int(rng.integers(len(free)))]

    weighted = rng.random() < follow
    shapes = [str(rng.choice(list(SHAPE_WEIGHTS), p=list(SHAPE_WEIGHTS.values()))) if weighted else pick(SHAPES)]
    for _ in range({"relation": 1, "trio": 2}.get(level, 0)):
        shapes.append(pick(SHAPES, PARTNER_OF[shapes[-1]], tuple(shapes)))
    colours: list[str] = []
    for shape in shapes:
        colours.append(pick(COLOURS, COLOUR_OF[shape], tuple(colours)))
    background = pick(BACKGROUNDS, BACKGROUND_OF[shapes[0]])
    style = pick(STYLES, STYLE_OF[background])
    size = pick(SIZES, SIZE_OF[shapes[0]]) if level == "single" else "small"
    things = tuple(Thing(shape, colour, size) for shape, colour in zip(shapes, colours, strict=True))
    if level == "count":
        things *= pick(COUNTS, COUNT_OF[shapes[0]])
    relation = pick(READING_RELATIONS) if level == "relation" else None
    return Scene(level, things, background, style, relation)
