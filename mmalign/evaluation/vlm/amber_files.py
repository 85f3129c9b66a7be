"""AMBER's files: questions, what is there, associated words, safe words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
}
"""Types of questions by the official script (``inference.py:175-184``); all others but generative are relations."""
WANTED = (
    "Download data/annotations.json, data/relation.json and data/safe_words.txt of the repository "
    "junyangwang0410/AMBER on GitHub into one folder and give it with --annotations; the questions are "
    "data/query/query_all.json there, and its README says where the pictures are"
)


@dataclass(frozen=True)
class AmberTruth:
    """Of a description: words of what is there (``truth``) and of ``likely`` hallucinations. Of a question: ``label``
    yes or no, and its ``kind``."""

    kind: str
    truth: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()
    label: Literal["yes", "no"] | None = None

    @property
    def is_generative(self) -> bool:
        """Whether a description is asked for."""
        return self.label is None


@dataclass(frozen=True)
class AmberData:
    """``truths`` by id; ``associations``: word -> words that go with it; ``safe_words`` that never count."""

    truths: Mapping[str, AmberTruth]
    associations: Mapping[str, tuple[str, ...]]
    safe_words: frozenset[str]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that a noun must be one of to count (``inference.py:57-62``)."""
        return frozenset(self.associations) | {word for words in self.associations.values() for word in words}

    def words_around(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """(word, place of its object): all associated words, then the objects themselves (``inference.py:97-116``)."""
        around = [(word, place) for place, name in enumerate(objects) for word in self.associations[name]]
        return [*around, *((name, place) for place, name in enumerate(objects))]

    def truth_of(self, key: str) -> AmberTruth:
        """What is right for the question ``key``."""
        if key not in self.truths:
            raise ValueError(f"question {key} has no entry in AMBER's annotations.json ({len(self.truths)} entries)")
        return self.truths[key]


def read_amber(folder: Path) -> AmberData:
    """The three files in ``folder``; ValueError that says what to download, or which entry is wrong.

    The official script takes an annotation by its place (``ground_truth[id - 1]``); here ids are looked up, which is
    the same as long as the file is in order.
    """
    associations = _associations(folder / "relation.json")
    safe = _text(folder / "safe_words.txt").split("\n")
    file = folder / "annotations.json"
    truths: dict[str, AmberTruth] = {}
    entries = _json(file)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: holds no array of annotations. {WANTED}")
    for number, entry in enumerate(entries):
        where = f"{file}[{number}]"
        if not isinstance(entry, dict) or not {"id", "type", "truth"} <= entry.keys():
            raise ValueError(f"{where}: an annotation needs id, type and truth, got {entry!r:.100}")
        if str(entry["id"]) in truths:
            raise ValueError(f"{where}: the id {entry['id']} is there twice")
        truths[str(entry["id"])] = _truth(entry, associations, where)
    return AmberData(truths, associations, frozenset(word for word in safe if word))


def _truth(entry: Mapping[str, Any], associations: Mapping[str, Sequence[str]], where: str) -> AmberTruth:
    if entry["type"] != "generative":
        if entry["truth"] not in ("yes", "no"):
            raise ValueError(f"{where}: truth must be yes or no, got {entry['truth']!r}")
        return AmberTruth(KINDS.get(entry["type"], "relation"), label=entry["truth"])
    lists = [entry["truth"], entry.get("hallu", [])]
    for words in lists:
        unknown = [word for word in words if word not in associations]
        if unknown:
            raise ValueError(f"{where}: the word {unknown[0]!r} has no entry in relation.json")
    return AmberTruth("generative", truth=tuple(lists[0]), likely=tuple(lists[1]))


def _associations(file: Path) -> dict[str, tuple[str, ...]]:
    found = _json(file)
    if not isinstance(found, dict) or not all(isinstance(words, list) for words in found.values()):
        raise ValueError(f"{file}: must map each word to a list of words. {WANTED}")
    return {word: tuple(words) for word, words in found.items()}


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from error


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file. {WANTED}")
    return file.read_text(encoding="utf-8")
