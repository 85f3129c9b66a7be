"""BDHS, bias-driven hallucination sampling (arXiv 2407.02477): the model ends sentences that it cannot see the end of.

Algorithm 1 there: for each sentence of the good response keep its beginning, let the model end it with most of the
picture hidden, and take what comes out where it means something else.
"""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from PIL import Image

from mmalign.corruptions import check, corrupt
from mmalign.data.decoding import decode
from mmalign.negatives.answers import Answered
from mmalign.negatives.building import generator_of, seed_of
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.similarity import LEXICAL, Similarity, check_similarity, similarity_of
from mmalign.negatives.speaking import Speaker, sentences
from mmalign.types import VLMPair

_YES_NO = re.compile(r"^(\s*)(Yes|yes|No|no)\b")
_OTHER = {"Yes": "No", "yes": "no", "No": "Yes", "no": "yes"}


@dataclass(frozen=True)
class Gate:
    """Which responses differ enough: cosine below ``most_alike`` (epsilon_s) by ``measure``, in ``iterations``."""

    iterations: int
    most_alike: float
    measure: Similarity


@dataclass(frozen=True)
class BDHS:
    """Sentences of the response ended by the model while attention reaches few tokens of the picture (BDHS, attn).

    ``threshold``: rho_th, the share of picture tokens that are hidden (0.99 published for LLaVA-1.6, whose tokens
    repeat each other; 1 hides all). ``iterations``: N_BDHS. ``most_alike``: epsilon_s. ``similarity``: the folder of an
    encoder of sentences (all-mpnet-base-v2 there), or ``lexical``, cosine of word counts, which needs none.
    """

    threshold: float = 0.99
    iterations: int = 5
    most_alike: float = 0.97
    similarity: str = LEXICAL

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r} must lie above 0, where nothing is hidden, and up to 1")
        _check_gate(self.iterations, self.most_alike, self.similarity)

    def open(self, kit: Kit) -> Make:
        """A pair of each row with a picture."""
        gate = Gate(self.iterations, self.most_alike, similarity_of(self.similarity))
        return lambda row, seed: bdhs_pair(row, kit.voice, seed, gate, threshold=self.threshold)


@dataclass(frozen=True)
class BDHSNoise:
    """Sentences of the response ended by the model with the picture under diffusion noise (BDHS, noise).

    ``step``: N of the schedule of VCD and POVID, 100 to 500 in the paper's table 15. The rest as in ``bdhs``.
    """

    step: int = 500
    iterations: int = 5
    most_alike: float = 0.97
    similarity: str = LEXICAL

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check("noise", {"step": self.step})
        _check_gate(self.iterations, self.most_alike, self.similarity)

    def open(self, kit: Kit) -> Make:
        """A pair of each row with a picture."""
        gate = Gate(self.iterations, self.most_alike, similarity_of(self.similarity))
        return lambda row, seed: bdhs_pair(row, kit.voice, seed, gate, step=self.step)


def bdhs_pair(
    row: Answered, speaker: Speaker, seed: int, gate: Gate, *, threshold: float = 0.0, step: int | None = None
) -> VLMPair | str:
    """The response against what BDHS makes of it, by ``threshold`` (attention) or ``step`` (noise), or why not.

    Hidden tokens, noise and places where sentences are cut are drawn anew in each iteration. The last of several is
    not guided: the model says the whole response, and that is taken however alike it is, as published; it is no pair
    only where it is the response itself or nothing.
    """
    if not row.images:
        return "the row has no picture, so nothing would be hidden from the model"
    pictures = [decode(image) for image in row.images]
    said, alike, round_, guided = "", 1.0, 0, True
    for round_ in range(1, gate.iterations + 1):
        own = seed_of(seed, f"round {round_}")
        shown = pictures if step is None else _noisy(pictures, step, own)
        guided = round_ == 1 or round_ < gate.iterations
        kept = _begun(row.response, generator_of(own)) if guided else [("", "")]
        heads = [before + start for before, start in kept]
        ends = speaker.say_each(
            row.prompt, shown, own, heads, sentence=guided, hide=threshold, name=row.sample_id
        )  # fmt: skip
        said = "".join(start + end for (_, start), end in zip(kept, ends, strict=True)).strip()
        alike = gate.measure(said, row.response)
        if said and alike < gate.most_alike:
            break
    if not said:
        return "the model said nothing with the picture hidden"
    if said.split() == row.response.split():
        return f"the model said the response itself in all of {gate.iterations} iterations"
    how = {"negative": "bdhs", "iterations": round_, "guided": guided, "similarity": round(alike, 4)}
    pair = row.against(said)
    return replace(pair, extras={**pair.extras, **how})


def _begun(response: str, generator: torch.Generator) -> list[tuple[str, str]]:
    """(sentences before, kept beginning) of every sentence, cut between words at an even draw.

    A beginning of yes or no becomes the other one half of the time; it is then kept, or nothing would have changed.
    The sentences before are the response's own, as published.
    """
    begun, before = [], ""
    for sentence in sentences(response):
        turned, first = sentence, 0
        found = _YES_NO.match(sentence)
        if found is not None and bool(torch.rand((), generator=generator) >= 0.5):
            start = f"{found[1]}{_OTHER[found[2]]}"
            turned, first = start + sentence[found.end() :], len(start)
        ends = [match.end() for match in re.finditer(r"\S+", turned)]
        places = [first, *(end for end in ends[:-1] if end > first)]
        place = places[int(torch.randint(len(places), (), generator=generator))]
        begun.append((before, turned[:place]))
        before += sentence
    return begun


def _noisy(pictures: list[Image.Image], step: int, seed: int) -> list[Image.Image]:
    generator = generator_of(seed)
    return [corrupt(picture, "noise", generator, step=step) for picture in pictures]


def _check_gate(iterations: int, most_alike: float, similarity: str) -> None:
    if iterations < 1:
        raise ValueError(f"iterations={iterations!r} must be at least 1")
    if not 0 < most_alike <= 1:
        raise ValueError(f"most_alike={most_alike!r} must lie above 0 and up to 1")
    check_similarity(similarity)
