"""Rejected texts from chosen ones: one object, attribute or relation said wrong, by lists of words.

The rejected texts of POVID (arXiv 2402.11411) were written by GPT-4V along these lines; word lists need no judge, and
where the text told the truth, what replaces one of its words is false.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mmalign.negatives.answers import Answered
from mmalign.types import VLMPair


@dataclass(frozen=True)
class Vocabulary:
    """``groups``: name -> words or phrases of which only one is true of the same thing (colours, shapes, places).

    Groups of equal meaning in other forms (plurals) are groups of their own. ValueError for a group of fewer than two,
    or a phrase in two groups, since it would then be unclear what to put in its place.
    """

    groups: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for name, phrases in self.groups.items():
            if len(set(phrases)) < 2:
                raise ValueError(f"group {name!r} has {len(set(phrases))} words; at least two are needed to swap one")
            for phrase in phrases:
                if phrase != phrase.lower().strip() or not phrase:
                    raise ValueError(f"group {name!r}: {phrase!r} must be in lower case, without spaces around it")
                if seen.setdefault(phrase, name) != name:
                    raise ValueError(f"{phrase!r} is in the groups {seen[phrase]!r} and {name!r}; it may be in one")


@dataclass(frozen=True)
class Swap:
    """A text with one phrase replaced: ``start`` is the first character of both."""

    text: str
    group: str
    before: str
    after: str
    start: int


ENGLISH = Vocabulary(
    {
        "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"),
        "size": ("tiny", "small", "medium-sized", "large", "huge"),
        "place": ("to the left of", "to the right of", "above", "below", "behind", "in front of"),
        "number": ("two", "three", "four", "five", "six", "seven", "eight"),
        "material": ("wooden", "metal", "plastic", "glass", "stone"),
        "weather": ("sunny", "cloudy", "rainy", "snowy", "foggy"),
    }
)
"""Words of descriptions in general. Objects are not among them: give the classes of your data as a group."""


def playground_vocabulary() -> Vocabulary:
    """The words of the playground's captions. Colours of things and of backgrounds are apart, as they are there."""
    from mmalign.playground.captions import COUNT_WORDS, PLURALS
    from mmalign.playground.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, STYLES

    return Vocabulary(
        {
            "object": SHAPES,
            "objects": tuple(PLURALS.values()),
            "colour": COLOURS,
            "size": SIZES,
            "style": STYLES,
            "background": BACKGROUNDS,
            "number": tuple(COUNT_WORDS.values()),
            "relation": RELATIONS,
        }
    )


def swap(text: str, vocabulary: Vocabulary, generator: torch.Generator, *, group: str | None = None) -> Swap | None:
    """``text`` with one phrase of the vocabulary (of ``group`` alone, where given) replaced by another of its group.

    The place is drawn evenly among all phrases found, the replacement evenly among those that the text does not hold: a
    word that it says elsewhere may be true here too. A capital at the beginning stays one. None where nothing can be
    swapped. ValueError for an unknown group.
    """
    if group is not None and group not in vocabulary.groups:
        raise ValueError(f"there is no group {group!r}; the vocabulary has {', '.join(vocabulary.groups)}")
    groups = vocabulary.groups if group is None else {group: vocabulary.groups[group]}
    places = _places(text, groups)
    said = {found for _, found, _ in places}
    open_places = [
        (start, found, name, free)
        for start, found, name in places
        if (free := [phrase for phrase in groups[name] if phrase not in said])
    ]
    if not open_places:
        return None
    start, found, name, free = open_places[_draw(generator, len(open_places))]
    after = free[_draw(generator, len(free))]
    shown = after.capitalize() if text[start].isupper() else after
    swapped = text[:start] + shown + text[start + len(found) :]
    return Swap(_article(swapped, start), name, found, after, start)


def swapped_pair(
    row: Answered, vocabulary: Vocabulary, generator: torch.Generator, *, group: str | None = None
) -> VLMPair | str:
    """The answer against itself with one phrase swapped; or why there is no such pair."""
    found = swap(row.response, vocabulary, generator, group=group)
    if found is None:
        return f"the response holds no word of {group or 'the vocabulary'} that can be swapped"
    how = {"negative": "text_swap", "swapped": found.group, "before": found.before, "after": found.after}
    pair = row.against(found.text)
    return replace(pair, extras={**pair.extras, **how})


def masked(text: str, vocabulary: Vocabulary, mark: str) -> tuple[str, list[str]]:
    """(``text`` with ``mark`` in the place of every phrase of the vocabulary, the phrases in order)."""
    found = _places(text, vocabulary.groups)
    shown, end = "", 0
    for start, phrase, _ in found:
        shown += text[end:start] + mark
        end = start + len(phrase)
    return shown + text[end:], [text[start : start + len(phrase)] for start, phrase, _ in found]


def _places(text: str, groups: Mapping[str, tuple[str, ...]]) -> list[tuple[int, str, str]]:
    """(first character, phrase, group) of every phrase in the text as whole words; longer phrases before shorter."""
    owner = {phrase: name for name, phrases in groups.items() for phrase in phrases}
    longest_first = sorted(owner, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])", re.IGNORECASE)
    return [(match.start(), match[0].lower(), owner[match[0].lower()]) for match in pattern.finditer(text)]


def _article(text: str, start: int) -> str:
    """a or an before the swapped word, by its first letter: an article that does not fit would give it away."""
    before, after = text[:start], text[start:]
    match = re.search(r"\b([Aa])n?\s$", before)
    if match is None:
        return text
    vowel = after[:1].lower() in "aeio" or after[:2].lower() in ("ug", "up", "um")
    return f"{before[: match.start()]}{match[1]}{'n' if vowel else ''} {after}"


def _draw(generator: torch.Generator, number: int) -> int:
    return int(torch.randint(number, (), generator=generator))
