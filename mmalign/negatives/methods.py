"""Methods that need little: one word said wrong, and the end of a response said without the picture."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mmalign.negatives.answers import Answered, without_pictures
from mmalign.negatives.building import generator_of
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.speaking import Speaker
from mmalign.negatives.text_swaps import ENGLISH, Vocabulary, playground_vocabulary, swapped_pair
from mmalign.types import VLMPair


@dataclass(frozen=True)
class TextSwap:
    """One object, attribute or relation of the response said wrong, by lists of words (along the lines of POVID)."""

    vocabulary: str = "english"  # english, playground, or a JSON file: {"group": ["word", ...], ...}
    group: str | None = None

    speaks: ClassVar[bool] = False
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        groups = self.words.groups
        if self.group is not None and self.group not in groups:
            raise ValueError(f"group={self.group!r} must be one of {', '.join(groups)}")

    @property
    def words(self) -> Vocabulary:
        """The lists of words; ValueError for a file that holds none."""
        if self.vocabulary in ("english", "playground"):
            return ENGLISH if self.vocabulary == "english" else playground_vocabulary()
        return _vocabulary_in(Path(self.vocabulary))

    def open(self, kit: Kit) -> Make:  # noqa: ARG002 - nothing of it is needed
        """A pair of each row with a word of the vocabulary."""
        words = self.words
        return lambda row, seed: swapped_pair(row, words, generator_of(seed), group=self.group)


@dataclass(frozen=True)
class DropoutNTP:
    """The first words of the response, and what the model adds without the picture (InternVL's MPO)."""

    keep: float = 0.5

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep={self.keep!r} must lie between 0 and 1")

    def open(self, kit: Kit) -> Make:
        """A pair of each row with a picture and a response of two words or more."""
        return lambda row, seed: dropout_ntp(row, kit.voice, seed, keep=self.keep)


def dropout_ntp(row: Answered, speaker: Speaker, seed: int, *, keep: float = 0.5) -> VLMPair | str:
    """The first ``keep`` of the response's words, and what the model adds when it does not see the picture.

    Dropout next-token prediction of InternVL's MPO (arXiv 2411.10442), which keeps half. Gives the pair with the whole
    response chosen, or why there is none: a response of one word, or a continuation that says nothing or the same.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep!r} must lie between 0 and 1")
    if not row.images:
        return "the row has no picture, so nothing would be hidden from the model"
    words = row.response.split(" ")
    kept = " ".join(words[: max(1, round(keep * len(words)))])
    if len(words) < 2:
        return "the response is one word and has no half"
    added = speaker.say(without_pictures(row.prompt), (), seed, begun=kept, name=row.sample_id).rstrip()
    if not added.strip():
        return "the model added nothing without the picture"
    if (kept + added).split() == row.response.split():
        return "the model said the same without the picture"
    pair = row.against(kept + added)
    return replace(pair, extras={**pair.extras, "negative": "dropout_ntp", "kept_characters": len(kept)})


def _vocabulary_in(path: Path) -> Vocabulary:
    if not path.is_file():
        raise ValueError(f"vocabulary={str(path)!r} is neither english nor playground nor a JSON file")
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        return Vocabulary({name: tuple(words) for name, words in groups.items()})
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} must hold {{"group": ["word", "another"], ...}} ({error})') from error
