"""Reads descriptions that a model made up and compares them with the scene, word by word and without any judge.

Unlike :func:`mmalign.playground.captions.parse`, which takes captions of the grammar or nothing, this reader takes
whatever a model says and finds the *claims* in it: shapes, and for each its colour, pattern, size and number, relations
between them, and the background. A claim is right or wrong by the scene. In the terms of CHAIR (arXiv 1809.02156) a
description hallucinates when one of its claims is wrong (per sentence), or by the share of wrong claims (per mention).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

from mmalign.playground.captions import COUNT_WORDS, PLURALS
from mmalign.playground.questions import describe
from mmalign.playground.questions import words as known_words
from mmalign.playground.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, STYLES, Scene, Thing

_NOUNS = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURALS.items()}}
_NUMBERS = {"one": 1, **{word: number for number, word in COUNT_WORDS.items()}}
_KIND_OF = {
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(STYLES, "style"),
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(_NUMBERS, "count"),
    **dict.fromkeys(BACKGROUNDS, "background"),
}
_FAR_APART = 0.2


@dataclass(frozen=True)
class Phrase:
    """A thing as it is spoken of; None for what is not said. ``count`` is only said by a number word."""

    shape: str
    colour: str | None = None
    style: str | None = None
    size: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class Description:
    """What a text says. ``relations``: (index of a phrase, relation, index of a phrase).

    ``repeats``: phrases that say an earlier one word for word again; they are not in ``phrases``. ``loose``: attributes
    that belong to no thing. ``unknown``: words that the playground does not know.
    """

    phrases: tuple[Phrase, ...]
    backgrounds: tuple[str, ...]
    relations: tuple[tuple[int, str, int], ...]
    repeats: int
    loose: tuple[str, ...]
    unknown: tuple[str, ...]
    n_words: int


@dataclass(frozen=True)
class Claim:
    """One thing said: kind (shape, colour, style, size, count, relation, background), value, and whether it holds."""

    kind: str
    value: str
    right: bool


@dataclass(frozen=True)
class DescriptionJudgement:
    """A description against its scene. ``found`` of ``asked``: per kind, how much of the gold description it says."""

    description: Description
    claims: tuple[Claim, ...]
    found: dict[str, int]
    asked: dict[str, int]

    @property
    def wrong(self) -> tuple[Claim, ...]:
        """The claims that do not hold."""
        return tuple(claim for claim in self.claims if not claim.right)

    @property
    def hallucinates(self) -> bool:
        """True where any claim is wrong: CHAIR's per-sentence measure."""
        return bool(self.wrong)

    @property
    def recall(self) -> float:
        """Share of the gold description that is said and right."""
        return sum(self.found.values()) / sum(self.asked.values())


def read_description(text: str) -> Description:
    """The claims of any text; nothing that is said raises an error."""
    reader = _Reader()
    spoken = re.findall(r"[^\W_]+", text.lower())
    known = set(known_words()) | {"one"}
    for word in spoken:
        reader.take(word)
    reader.drop_pending()
    return Description(
        phrases=tuple(reader.phrases),
        backgrounds=tuple(reader.backgrounds),
        relations=tuple(reader.relations),
        repeats=reader.repeats,
        loose=tuple(reader.loose),
        unknown=tuple(word for word in spoken if word not in known),
        n_words=len(spoken),
    )


def judge_description(text: str, scene: Scene) -> DescriptionJudgement:
    """Every claim of ``text`` against ``scene``.

    Phrases are assigned to the scene's things, each to at most one, so that most claims hold; what is left over is
    invented, and all of its claims are wrong.
    """
    said = read_description(text)
    kinds = _kinds_of_thing(scene)
    assigned = _assign(said.phrases, kinds)
    claims: list[Claim] = []
    found: dict[str, set[object]] = defaultdict(set)
    for index, phrase in enumerate(said.phrases):
        truth = kinds[assigned[index]] if index in assigned else None
        for kind, value in _claims_of(phrase).items():
            right = truth is not None and getattr(truth, kind) == value
            claims.append(Claim(kind, str(value), right))
            if right:
                found[kind].add(assigned[index])
    for first, relation, second in said.relations:
        right = first in assigned and second in assigned and _holds(scene, assigned[first], relation, assigned[second])
        claims.append(Claim("relation", relation, right))
        if right:
            found["relation"].add(frozenset((assigned[first], assigned[second])))
    for background in said.backgrounds:
        claims.append(Claim("background", background, background == scene.background))
        if background == scene.background:
            found["background"].add(background)
    asked = _asked(scene)
    counts = {kind: min(len(found[kind]), number) for kind, number in asked.items()}
    return DescriptionJudgement(said, tuple(claims), counts, asked)


@dataclass
class _Reader:
    """Collects claims word by word: attributes wait in ``pending`` for the noun that they belong to."""

    phrases: list[Phrase] = field(default_factory=list)
    backgrounds: list[str] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    repeats: int = 0
    pending: list[str] = field(default_factory=list)
    last: int | None = None
    waiting: tuple[int, str] | None = None
    half: str | None = None

    def take(self, word: str) -> None:
        if self.half is not None:
            relation, self.half = f"{self.half} {word}", None
            if relation in RELATIONS:
                self._relate(relation)
                return
        if word in _KIND_OF:
            self.pending.append(word)
        elif word in _NOUNS:
            self._close(_NOUNS[word])
        elif word == "background":
            self._close_background()
        elif word in RELATIONS:
            self._relate(word)
        else:
            self.half = word if word in ("left", "right") else None
            self.drop_pending()

    def drop_pending(self) -> None:
        self.loose += self.pending
        self.pending = []

    def _close(self, shape: str) -> None:
        values: dict[str, str] = {}
        for word in self.pending:
            kind = _KIND_OF[word]
            if kind == "background" or kind in values:
                self.loose.append(word)
            else:
                values[kind] = word
        count = values.pop("count", None)
        phrase = Phrase(shape, **values, count=_NUMBERS[count] if count else None)
        self.pending = []
        if phrase in self.phrases:
            self.repeats += 1
            self.last = self.phrases.index(phrase)
        else:
            self.phrases.append(phrase)
            self.last = len(self.phrases) - 1
        if self.waiting is not None:
            first, relation = self.waiting
            self.waiting = None
            if first != self.last and (first, relation, self.last) not in self.relations:
                self.relations.append((first, relation, self.last))

    def _close_background(self) -> None:
        """``a navy background``, or wrongly ``a red background``: the last word that can be its colour."""
        colours = [word for word in self.pending if _KIND_OF[word] in ("background", "colour")]
        if colours:
            if colours[-1] not in self.backgrounds:
                self.backgrounds.append(colours[-1])
            self.pending.remove(colours[-1])
        self.drop_pending()

    def _relate(self, relation: str) -> None:
        self.drop_pending()
        if self.last is not None:
            self.waiting = (self.last, relation)


@dataclass(frozen=True)
class _KindOfThing:
    """Equal things of a scene together: all that a phrase can say of them."""

    shape: str
    colour: str
    style: str
    size: str
    count: int


def _kinds_of_thing(scene: Scene) -> list[_KindOfThing]:
    shown = scene.things[:1] if scene.level == "count" else scene.things
    number = len(scene.things) if scene.level == "count" else 1
    return [_KindOfThing(thing.shape, thing.colour, scene.style, thing.size, number) for thing in shown]


def _claims_of(phrase: Phrase) -> dict[str, str | int]:
    values = {kind: getattr(phrase, kind) for kind in ("shape", "colour", "style", "size", "count")}
    return {kind: value for kind, value in values.items() if value is not None}


def _assign(phrases: Sequence[Phrase], kinds: Sequence[_KindOfThing]) -> dict[int, int]:
    """Index of a phrase -> index of the kind of thing it is about: most claims right, then the first order of all."""
    scores = [
        [sum(getattr(kind, name) == value for name, value in _claims_of(phrase).items()) for kind in kinds]
        for phrase in phrases
    ]
    # The best assignment needs no phrase beyond the best few of each kind, however long the text is.
    ranked = [sorted(range(len(phrases)), key=lambda phrase: -scores[phrase][kind]) for kind in range(len(kinds))]
    best_few = {phrase for order in ranked for phrase in order[: len(kinds)]}
    candidates: list[int | None] = [*sorted(best_few), *[None] * max(0, len(kinds) - len(best_few))]

    def total(order: tuple[int | None, ...]) -> int:
        return sum(scores[phrase][kind] for kind, phrase in enumerate(order) if phrase is not None)

    best = max(permutations(candidates, len(kinds)), key=total)
    return {phrase: kind for kind, phrase in enumerate(best) if phrase is not None}


def _holds(scene: Scene, first: int, relation: str, second: int) -> bool:
    """Whether thing ``first`` is ``relation`` thing ``second``: as the scene states it, else by their places."""
    if first == second:
        return False
    if scene.relation is not None:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        return relation == (scene.relation if first == 0 else opposite[scene.relation])
    ahead: tuple[Thing, Thing] = (scene.things[first], scene.things[second])
    right, down = ahead[0].x - ahead[1].x, ahead[0].y - ahead[1].y
    distance = {"left of": -right, "right of": right, "above": -down, "below": down}
    return distance[relation] > _FAR_APART


def _asked(scene: Scene) -> dict[str, int]:
    """How many claims of each kind the gold description makes."""
    gold = read_description(describe(scene))
    asked: dict[str, int] = defaultdict(int)
    for phrase in gold.phrases:
        for kind in _claims_of(phrase):
            asked[kind] += 1
    asked["background"] = len(gold.backgrounds)
    if gold.relations:
        asked["relation"] = len(gold.relations)
    return dict(asked)
