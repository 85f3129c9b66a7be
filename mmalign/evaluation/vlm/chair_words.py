"""Which COCO objects a text mentions, by CHAIR's synonyms, double words and exceptions (arXiv 1809.02156).

Official rules as in LisaAnne/Hallucination, ``utils/chair.py``: synonyms 53-61, double words 65-86, a caption 98-134.
Its synonyms come in ``data/synonyms.txt``, which is read where it lies and not part of mmalign.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.evaluation.vlm.singular import singular

Rules = Literal["official", "corrected"]
SOURCE = (
    "Download data/synonyms.txt of the repository LisaAnne/Hallucination on GitHub and give it with --synonyms (or put "
    "it into the folder of --annotations)"
)
_PAIRS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "bow tie", "laptop computer", "stove top oven", "home plate", "train track"),
)
_ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("animal", "cub"),
)
_VEHICLES = ("jet", "train")


@dataclass(frozen=True)
class Vocabulary:
    """``classes``: word -> class (a word or double word after it is made singular); ``doubles``: two words -> what they
    count as."""

    classes: Mapping[str, str]
    doubles: Mapping[str, str]


@dataclass(frozen=True)
class Mention:
    """A word of the text that stands for an object, and the object's class."""

    word: str
    name: str


def double_words(
    pairs: tuple[str, ...] = _PAIRS, animals: tuple[str, ...] = _ANIMALS, vehicles: tuple[str, ...] = _VEHICLES
) -> dict[str, str]:
    """Two words -> what they count as: ``hot dog`` is itself, ``baby bird`` a bird, ``passenger train`` a train.

    ``wine glas`` is what is left of ``wine glass`` in the singular, and ``toilet seat`` is no seat.
    """
    doubles = {pair: pair for pair in pairs}
    doubles |= {f"{age} {animal}": animal for animal in animals for age in ("baby", "adult")}
    doubles |= {f"passenger {vehicle}": vehicle for vehicle in vehicles}
    return doubles | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


def read_double_words(path: Path) -> dict[str, str]:
    """The same from the three lists in the official ``utils/chair.py``; nothing of that file is run."""
    text = path.read_text(encoding="utf-8")
    lists = []
    for name in ("coco_double_words", "animal_words", "vehicle_words"):
        found = re.search(rf"^\s*{name}\s*=\s*(\[[^\]]*\])", text, re.MULTILINE)
        if not found:
            raise ValueError(f"{path}: no list {name}; give utils/chair.py of the repository LisaAnne/Hallucination")
        lists.append(tuple(str(word) for word in ast.literal_eval(found[1])))
    return double_words(*lists)


def read_synonyms(path: Path, rules: Rules = "official") -> dict[str, str]:
    """Word -> class, from a file with a class and its synonyms per line, parted by a comma and a space.

    The official script strips the line, not the words (``chair.py:54-55``), so that a word behind two spaces, such as
    `` motor bike``, matches nothing; ``corrected`` strips the words too.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. {SOURCE}")
    classes: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.strip().split(", ")
        if words == [""]:
            continue
        if rules == "corrected":
            words = [word.strip() for word in words]
        classes |= dict.fromkeys(words, words[0])
    if len(set(classes.values())) < 2:
        raise ValueError(f"{path}: holds no synonyms, one class per line: person, girl, boy. {SOURCE}")
    return classes


def mentions(text: str, vocabulary: Vocabulary, tokenize: Callable[[str], list[str]], rules: Rules) -> list[Mention]:
    """Objects that ``text`` mentions, in order and as often as it does.

    Words in lower case are made singular; two words that are one are put together; in a text with a toilet a seat is no
    chair; what is left in the vocabulary counts. ``corrected``: a word that is in the vocabulary is not changed, and
    the plain cuts -s and -es count as well, so that ``bus`` and ``ties`` are found.
    """
    words = tokenize(text.lower())
    if rules == "official":
        words = [singular(word) for word in words]
    else:
        known = vocabulary.classes.keys() | {part for pair in vocabulary.doubles for part in pair.split()}
        words = [_known_singular(word, known) for word in words]
    joined: list[str] = []
    at = 0
    while at < len(words):
        pair = " ".join(words[at : at + 2])
        is_pair = pair in vocabulary.doubles
        joined.append(vocabulary.doubles[pair] if is_pair else words[at])
        at += 2 if is_pair else 1
    if "toilet" in joined:
        joined = [word for word in joined if word != "seat"]
    return [Mention(word, vocabulary.classes[word]) for word in joined if word in vocabulary.classes]


def _known_singular(word: str, known: set[str]) -> str:
    cuts = [word, singular(word)]
    cuts += [word[: -len(end)] for end in ("s", "es") if word.endswith(end)]
    return next((cut for cut in cuts if cut in known), singular(word))
