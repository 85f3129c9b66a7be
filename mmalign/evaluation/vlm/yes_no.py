"""Yes or no out of a free answer: as POPE's script reads it, as AMBER's does, and without giving anything away."""

import re
from collections.abc import Callable, Mapping
from typing import Literal

Reading = Literal["yes", "no"] | None
Rules = Literal["official", "strict"]

_SAID = re.compile(r"[a-z]+(?:['’]t)?")


def pope_official(answer: str) -> Reading:
    """no if one of the words No, not, no stands in the first sentence, else yes.

    RUCAIBox/POPE, ``evaluate.py:10-21``: text up to the first period, without commas, split at single spaces. Anything
    else counts as yes: ``NO``, ``No!``, a line break after ``No``, a refusal, an empty answer.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def amber_official(answer: str) -> Reading:
    """yes for exactly ``Yes``, no for exactly ``No``, else neither.

    junyangwang0410/AMBER, ``inference.py:189,214,233``.
    """
    return "yes" if answer == "Yes" else "no" if answer == "No" else None


def strict(answer: str) -> Reading:
    """yes or no where the first sentence says one of them and not the other, else None.

    None counts as an answer of its own: never right, neither yes nor no. A first word of yes or no decides; else yes,
    against no, not and n't, however they are written.
    """
    sentence = re.split(r"[.!?\n]", answer.strip().lower(), maxsplit=1)[0]
    words = _SAID.findall(sentence)
    if words[:1] in (["yes"], ["no"]):
        return "yes" if words[0] == "yes" else "no"
    affirms = "yes" in words
    denies = any(word in ("no", "not") or word.endswith(("n't", "n’t")) for word in words)
    if affirms == denies:
        return None
    return "yes" if affirms else "no"


POPE_READERS: Mapping[Rules, Callable[[str], Reading]] = {"official": pope_official, "strict": strict}
AMBER_READERS: Mapping[Rules, Callable[[str], Reading]] = {"official": amber_official, "strict": strict}
