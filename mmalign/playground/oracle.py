"""The playground's gold labels: which of a caption's attributes does a picture show? No learned model is involved."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from mmalign.playground.captions import parse
from mmalign.playground.reading import MIN_SIDE, Picture, Reading, ThingRead, read
from mmalign.playground.scene import Scene

__all__ = ["MIN_SIDE", "Judgement", "Picture", "Reading", "ThingRead", "judge", "judge_batch", "read"]

_MOST_THINGS = 4


@dataclass(frozen=True)
class Judgement:
    """Whether the picture shows each attribute the caption asks for.

    Always asked for: ``background``, ``style`` and ``count`` (a caption of one thing asks for exactly one). Levels
    ``single`` and ``count`` add ``shape`` and ``colour`` of every thing seen, ``single`` also ``size``. Other levels
    add ``shape 1``, ``colour 1``, ``shape 2``, ... in the caption's order, and ``relation`` where one is stated.
    """

    correct: dict[str, bool]

    @property
    def share(self) -> float:
        """Share of the attributes that are right, in [0, 1]: the oracle's reward."""
        return sum(self.correct.values()) / len(self.correct)

    @property
    def all_correct(self) -> bool:
        """True where every attribute is right."""
        return all(self.correct.values())


def judge(image: Picture, caption: str) -> Judgement:
    """Compare a picture with a caption of the grammar. Captions outside of the grammar are a ValueError."""
    return judge_reading(read(image), _scene_of(caption))


def judge_batch(images: Sequence[Picture], captions: Sequence[str]) -> list[Judgement]:
    """:func:`judge` for each picture and its caption."""
    if len(images) != len(captions):
        raise ValueError(f"got {len(images)} pictures and {len(captions)} captions; pass one caption per picture")
    return [judge(image, caption) for image, caption in zip(images, captions, strict=True)]


def judge_reading(reading: Reading, scene: Scene) -> Judgement:
    """Compare what was read with what was asked for."""
    correct = {"background": reading.background == scene.background, "count": len(reading.things) == len(scene.things)}
    if scene.level in ("single", "count"):
        return Judgement(correct | _judge_equal_things(reading.things, scene))
    return Judgement(correct | _judge_different_things(reading.things, scene))


@lru_cache(maxsize=4096)
def _scene_of(caption: str) -> Scene:
    return parse(caption)


def _judge_equal_things(seen: tuple[ThingRead, ...], scene: Scene) -> dict[str, bool]:
    """One thing, or several of a kind: what is asked for must hold for everything in the picture."""
    asked = scene.things[0]
    correct = {
        "style": bool(seen) and all(thing.style == scene.style for thing in seen),
        "shape": bool(seen) and all(thing.shape == asked.shape for thing in seen),
        "colour": bool(seen) and all(thing.colour == asked.colour for thing in seen),
    }
    if scene.level == "single":
        correct["size"] = bool(seen) and all(thing.size == asked.size for thing in seen)
    return correct


def _judge_different_things(seen: tuple[ThingRead, ...], scene: Scene) -> dict[str, bool]:
    """Things that differ: the assignment of seen to asked things under which most is right."""
    missing = max(0, len(scene.things) - len(seen))
    candidates = [*seen[:_MOST_THINGS], *[None] * missing]
    judgements = (_judge_assignment(chosen, scene) for chosen in permutations(candidates, len(scene.things)))
    return max(judgements, key=lambda correct: sum(correct.values()))


def _judge_assignment(chosen: tuple[ThingRead | None, ...], scene: Scene) -> dict[str, bool]:
    correct = {"style": all(thing is not None and thing.style == scene.style for thing in chosen)}
    for number, (thing, asked) in enumerate(zip(chosen, scene.things, strict=True), start=1):
        correct[f"shape {number}"] = thing is not None and thing.shape == asked.shape
        correct[f"colour {number}"] = thing is not None and thing.colour == asked.colour
    if scene.relation is not None:
        first, second = chosen
        correct["relation"] = first is not None and second is not None and _relation(first, second) == scene.relation
    return correct


def _relation(first: ThingRead, second: ThingRead) -> str:
    """Where the first thing is, seen from the second: along the axis on which they are further apart."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) >= abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"
