"""Whether a change of the picture makes a text wrong: a flip does only where the text tells left from right."""

import re

SIDES = ("left", "right", "leftmost", "rightmost", "leftward", "rightward", "clockwise", "counterclockwise")
_WORD = re.compile(r"[a-z]+")
# "right" and "left" in other senses, longest first.
_OTHER_SENSES = (
    "all right",
    "right away",
    "right now",
    "right answer",
    "right there",
    "right here",
    "right angle",
    "human rights",
    "is that right",
    "left over",
    "has left",
    "have left",
    "had left",
    "nothing left",
    "bright",
)


def told_sides(text: str) -> bool:
    """Whether ``text`` tells left from right (not "right away", "nothing is left" in known phrases, nor "bright")."""
    plain = " ".join(_WORD.findall(text.lower()))
    for phrase in _OTHER_SENSES:
        plain = re.sub(rf"\b{phrase}\b", " ", plain)
    return any(word in SIDES for word in plain.split())


def flip_makes_wrong(text: str) -> bool:
    """Whether a mirrored picture is wrong for ``text``: it tells sides, or says that writing is read.

    A text that tells neither is as true of the mirrored picture, which would then be no negative.
    """
    read = re.search(r"\b(reads|says|labelled|labeled|lettering|inscription|the words?|spell(s|ed)?)\b", text.lower())
    return told_sides(text) or read is not None
