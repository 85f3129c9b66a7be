"""Scenes of coloured shapes: the vocabulary, random draws, and which combinations are kept for evaluation.

A scene holds *attributes* (what a caption says and the oracle judges) and *nuisances* (positions and scales, which a
caption leaves open). Coordinates and radii are fractions of the picture's side, x to the right and y downwards.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("white", "black", "grey", "cream", "navy", "brown")
STYLES = ("solid", "hollow", "striped")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = (2, 3, 4)
LEVELS = ("single", "pair", "trio", "count", "relation")

RADII = {"small": 0.165, "medium": 0.26, "large": 0.40}
SCALE_JITTER = 0.05
HELD_OUT_SHARE = 0.11

_HELD_OUT_SALT = b"mmalign playground 1"
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_CENTRE_JITTER = {"small": 0.2, "medium": 0.12, "large": 0.045}
_NEAR, _FAR = 0.27, 0.73


@dataclass(frozen=True)
class Thing:
    """One object: the attributes ``shape``, ``colour``, ``size``; the nuisances centre ``x``, ``y`` and ``scale``."""

    shape: str
    colour: str
    size: str
    x: float = 0.5
    y: float = 0.5
    scale: float = 1.0

    @property
    def radius(self) -> float:
        """Half of the object's extent, as a fraction of the picture's side."""
        return RADII[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """What a picture shows. All things share ``style``; ``relation`` is where the first thing is, seen from the second.

    Levels: ``single`` one thing; ``pair`` and ``trio`` two and three different things; ``count`` two to four equal
    things; ``relation`` two different things in a stated relation. Beyond ``single`` every thing is small, and its size
    is neither said nor judged.
    """

    level: str
    things: tuple[Thing, ...]
    background: str
    style: str
    relation: str | None = None

    @property
    def attributes(self) -> tuple[Any, ...]:
        """Everything a caption says, in caption order: equal exactly when two scenes have the same caption."""
        things = tuple((thing.shape, thing.colour, thing.size) for thing in self.things)
        return (self.level, things, self.background, self.style, self.relation)


def sample_scene(rng: np.random.Generator, level: str = "single", *, held_out: bool | None = False) -> Scene:
    """A random scene, of the combinations ``held_out`` for evaluation (True), the others (False) or all (None)."""
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    while True:
        scene = _draw_attributes(rng, level)
        if held_out is None or is_held_out(scene) == held_out:
            return arrange(scene, rng)


def arrange(scene: Scene, rng: np.random.Generator | None = None) -> Scene:
    """The same attributes with new positions and scales; without ``rng`` the one canonical arrangement."""
    draw = (lambda low, high: (low + high) / 2) if rng is None else rng.uniform
    if scene.level == "single":
        spread = _CENTRE_JITTER[scene.things[0].size]
        centres = [(0.5 + draw(-spread, spread), 0.5 + draw(-spread, spread))]
    else:
        centres = _centres(scene, rng, draw)
    things = tuple(
        replace(thing, x=float(x), y=float(y), scale=float(draw(1 - SCALE_JITTER, 1 + SCALE_JITTER)))
        for thing, (x, y) in zip(scene.things, centres, strict=True)
    )
    return replace(scene, things=things)


def is_held_out(scene_or_caption: Scene | str) -> bool:
    """True for the ~11 % of attribute combinations that training never sees: a stable hash, the same on every machine.

    Scenes that look alike share the answer: the order of a pair's things, or "left of" told as "right of", is ignored.
    """
    scene = scene_or_caption
    if isinstance(scene, str):
        from mmalign.playground.captions import parse

        scene = parse(scene)
    things = [(thing.shape, thing.colour, thing.size) for thing in scene.things]
    relation = scene.relation
    if relation is not None and things[0] > things[1]:
        relation = _OPPOSITE[relation]
    key = repr((scene.level, sorted(things), scene.background, scene.style, relation)).encode()
    digest = hashlib.sha256(_HELD_OUT_SALT + key).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def held_out_prompts(level: str, n: int, seed: int = 0) -> list[str]:
    """``n`` distinct canonical captions of combinations that training never sees."""
    return _distinct_prompts(level, n, seed, held_out=True)


def training_prompts(level: str, n: int, seed: int = 0) -> list[str]:
    """``n`` distinct canonical captions of combinations that are open to training."""
    return _distinct_prompts(level, n, seed, held_out=False)


def _distinct_prompts(level: str, n: int, seed: int, *, held_out: bool) -> list[str]:
    from mmalign.playground.captions import caption

    rng = np.random.default_rng(seed)
    prompts: dict[str, None] = {}
    draws_without_news = 0
    while len(prompts) < n:
        before = len(prompts)
        prompts.setdefault(caption(sample_scene(rng, level, held_out=held_out)))
        draws_without_news = 0 if len(prompts) > before else draws_without_news + 1
        if draws_without_news > 10_000:
            raise ValueError(f"level {level!r} has only {len(prompts)} such prompts; ask for fewer than {n}")
    return list(prompts)


def _draw_attributes(rng: np.random.Generator, level: str) -> Scene:
    def pick(options: tuple[Any, ...]) -> Any:
        return options[int(rng.integers(len(options)))]

    background, style = pick(BACKGROUNDS), pick(STYLES)
    if level == "single":
        things = (Thing(pick(SHAPES), pick(COLOURS), pick(SIZES)),)
    elif level == "count":
        things = (Thing(pick(SHAPES), pick(COLOURS), "small"),) * pick(COUNTS)
    else:
        number = 3 if level == "trio" else 2
        shapes = rng.choice(len(SHAPES), number, replace=False)
        colours = rng.choice(len(COLOURS), number, replace=False)
        things = tuple(Thing(SHAPES[s], COLOURS[c], "small") for s, c in zip(shapes, colours, strict=True))
    relation = pick(RELATIONS) if level == "relation" else None
    return Scene(level, things, background, style, relation)


def _centres(
    scene: Scene, rng: np.random.Generator | None, draw: Callable[[float, float], float]
) -> list[tuple[float, float]]:
    """Centres far enough apart that two small things never touch."""
    if scene.relation is not None:
        across = 0.5 + draw(-0.15, 0.15), 0.5 + draw(-0.15, 0.15)
        along = _NEAR + draw(-0.03, 0.03), _FAR + draw(-0.03, 0.03)
        if scene.relation in ("right of", "below"):
            along = along[::-1]
        if scene.relation in ("left of", "right of"):
            return [(along[0], across[0]), (along[1], across[1])]
        return [(across[0], along[0]), (across[1], along[1])]
    corners = [(_NEAR, _NEAR), (_FAR, _FAR), (_FAR, _NEAR), (_NEAR, _FAR)]
    if rng is not None:
        corners = [corners[index] for index in rng.permutation(4)]
    return [(x + draw(-0.025, 0.025), y + draw(-0.025, 0.025)) for x, y in corners[: len(scene.things)]]
