"""Questions about a scene with gold answers of one word, and the prompts that ask for a description.

existence   is there a star ?                      yes | no
attribute   is the star red ?                      yes | no
colour      what colour is the star ?              red
shape       what shape is the red thing ?          star
size        what size is the star ?                large        (one thing)
pattern     what pattern does it have ?            striped
background  what colour is the background ?        navy
count       how many things are there ?            two
relation    is the star left of the circle ?       yes | no     (two things)
place       where is the star seen from the circle ?   left     (two things)
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmalign.playground.captions import COUNT_WORDS, caption
from mmalign.playground.captions import words as caption_words
from mmalign.playground.habits import co_occurrence
from mmalign.playground.scene import COLOURS, RELATIONS, SHAPES, Scene, Thing

DESCRIBE = ("describe the picture .", "what does the picture show ?", "what is in the picture ?")
"""Requests for a description; the first is the one that evaluation uses."""
KINDS = ("existence", "attribute", "colour", "shape", "size", "pattern", "background", "count", "relation", "place")
Negatives = Literal["random", "popular", "adversarial"]
NEGATIVES: tuple[Negatives, ...] = ("random", "popular", "adversarial")
NUMBERS = {1: "one", **COUNT_WORDS}

_TEMPLATES = {
    "existence": "is there a {shape} ?",
    "attribute": "is the {shape} {colour} ?",
    "colour": "what colour is the {shape} ?",
    "shape": "what shape is the {colour} thing ?",
    "size": "what size is the {shape} ?",
    "pattern": "what pattern does it have ?",
    "background": "what colour is the background ?",
    "count": "how many things are there ?",
    "relation": "is the {shape} {relation} the {other} ?",
    "place": "where is the {shape} seen from the {other} ?",
}
_PLACES = {relation: relation.split()[0] for relation in RELATIONS}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Question:
    """A question about a picture and its gold answer."""

    kind: str
    text: str
    answer: str

    @property
    def is_yes_no(self) -> bool:
        """True where the gold answer is yes or no."""
        return self.answer in ("yes", "no")


def describe(scene: Scene) -> str:
    """The gold description: the canonical caption."""
    return caption(scene)


def kinds_of(scene: Scene) -> list[str]:
    """The kinds of question that the scene answers."""
    possible = ["existence", "attribute", "colour", "shape", "pattern", "background", "count"]
    if scene.level == "single":
        possible.append("size")
    if scene.relation is not None:
        possible += ["relation", "place"]
    return possible


def ask(scene: Scene, kind: str, rng: np.random.Generator, *, yes_share: float = 0.5) -> Question:
    """A random question of one kind; of those with yes or no, ``yes_share`` are true."""
    if kind not in kinds_of(scene):
        raise ValueError(
            f"a scene of level {scene.level!r} answers no question of kind {kind!r}, only: {', '.join(kinds_of(scene))}"
        )
    thing = scene.things[int(rng.integers(len(scene.things)))]
    other = next((item for item in scene.things if item.shape != thing.shape), thing)
    values: dict[str, Any] = {"shape": thing.shape, "colour": thing.colour, "other": other.shape}
    if kind in ("existence", "attribute", "relation"):
        wanted = bool(rng.random() < yes_share)
        values |= _claim(scene, kind, thing, rng, wanted=wanted)
        return Question(kind, _TEMPLATES[kind].format(**values), "yes" if wanted else "no")
    return Question(kind, _TEMPLATES[kind].format(**values), _answer(scene, kind, thing))


def existence(shape: str, scene: Scene) -> Question:
    """``is there a star ?`` of a scene."""
    present = any(thing.shape == shape for thing in scene.things)
    return Question("existence", _TEMPLATES["existence"].format(shape=shape), "yes" if present else "no")


def absent_shape(scene: Scene, negatives: Negatives, rng: np.random.Generator) -> str:
    """A shape that the scene lacks, as POPE (arXiv 2305.10355) chooses objects to ask for.

    ``random``: any; ``popular``: the most frequent one of the habits' world; ``adversarial``: the one that is seen
    there most often beside a shape of this scene.
    """
    present = {thing.shape for thing in scene.things}
    absent = [shape for shape in SHAPES if shape not in present]
    together = co_occurrence()
    if negatives == "random":
        return absent[int(rng.integers(len(absent)))]
    if negatives == "popular":
        return max(absent, key=lambda shape: together[shape][shape])
    if negatives == "adversarial":
        return max(absent, key=lambda shape: sum(together[other][shape] / together[other][other] for other in present))
    raise ValueError(f"negatives {negatives!r} are unknown; choose one of {', '.join(NEGATIVES)}")


def read_answer(text: str) -> str:
    """The first word of an answer in lower case without signs; empty where it has none."""
    found = re.search(r"[a-z0-9]+", text.lower())
    return found[0] if found else ""


def words() -> list[str]:
    """Every word and sign of the descriptions, questions and answers, sorted."""
    fixed = " ".join(re.sub(r"\{\w+\}", " ", text) for text in (*DESCRIBE, *_TEMPLATES.values()))
    return sorted({*caption_words(), *fixed.split(), *NUMBERS.values(), "yes", "no", *_PLACES.values()})


def _claim(scene: Scene, kind: str, thing: Thing, rng: np.random.Generator, *, wanted: bool) -> dict[str, str]:
    """What a yes-or-no question claims, true exactly where ``wanted``."""
    if kind == "existence":
        return {"shape": thing.shape if wanted else absent_shape(scene, "random", rng)}
    if kind == "attribute":
        others = [colour for colour in COLOURS if colour != thing.colour]
        return {"colour": thing.colour if wanted else others[int(rng.integers(len(others)))]}
    true = _relation_of(scene, thing)
    return {"relation": true if wanted else _OPPOSITE[true]}


def _relation_of(scene: Scene, thing: Thing) -> str:
    """Where ``thing`` is, seen from the other of the two."""
    assert scene.relation is not None  # kinds_of admits only such scenes
    return scene.relation if thing.shape == scene.things[0].shape else _OPPOSITE[scene.relation]


def _answer(scene: Scene, kind: str, thing: Thing) -> str:
    if kind in ("colour", "shape", "size"):
        return getattr(thing, kind)
    if kind == "pattern":
        return scene.style
    if kind == "background":
        return scene.background
    if kind == "count":
        return NUMBERS[len(scene.things)]
    return _PLACES[_relation_of(scene, thing)]
