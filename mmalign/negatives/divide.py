"""Divide and conquer of RLAIF-V (arXiv 2405.17220): claims of an answer, each a question to a local model."""

import re
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import torch
from PIL import Image

from mmalign.data.decoding import decode
from mmalign.negatives.answers import Answered
from mmalign.negatives.building import generator_of, seed_of
from mmalign.negatives.kit import Kit, Make
from mmalign.negatives.speaking import Decoding, Speaker, sentences
from mmalign.types import ImagePart, Message, VLMPair

SPLIT = (
    "List every fact that this answer to a question about a picture states, as sentences that can be understood alone. "
    "Leave opinions out. Begin each line with a hyphen.\nQuestion: {question}\nAnswer: {answer}\nFacts:"
)
TURN = (
    "Turn each of these sentences into a question that can be answered by yes or no. Keep negations, add nothing, and "
    "begin each line with a hyphen.\n{claims}\nQuestions:"
)
SENTENCES = "sentences"
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s*(.+?)\s*$")


@dataclass(frozen=True)
class Judged:
    """An answer's ``claims``, the ``questions`` made of them, and for each p(yes) / (p(yes) + p(no)).

    ``score``: minus the number of claims that the model answers with no; 0 is the best.
    """

    answer: str
    claims: tuple[str, ...]
    questions: tuple[str, ...]
    yes: tuple[float, ...]

    @property
    def score(self) -> int:
        """-(number of rejected claims)."""
        return -sum(chance <= 0.5 for chance in self.yes)


@dataclass(frozen=True)
class DivideAndConquer:
    """The model's own answers, compared by how many of their claims it rejects when asked one by one (RLAIF-V).

    ``candidates``: answers to each prompt (10 published, at --temperature 0.7). ``gap``: by how much the scores of a
    pair differ at least; ``pairs``: at most so many of each row, drawn evenly (1 and 2 published). ``split``: what the
    model is asked for the claims, with {question} and {answer}, or ``sentences``, which makes each sentence a claim.
    ``turn``: what it is asked to make questions of {claims}, or a text with {claim} that is the question itself.
    ``request`` goes behind each question.
    """

    candidates: int = 10
    gap: int = 1
    pairs: int = 2
    split: str = SPLIT
    turn: str = TURN
    request: str = "Please answer yes or no."

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.gap < 1 or self.pairs < 1:
            raise ValueError(
                f"candidates={self.candidates}, gap={self.gap} and pairs={self.pairs} must be at least 2, 1 and 1"
            )
        if self.split != SENTENCES and "{answer}" not in self.split:
            raise ValueError(f"split must hold {{answer}} (and may hold {{question}}), or be {SENTENCES}")
        if ("{claims}" in self.turn) == ("{claim}" in self.turn):
            raise ValueError("turn must hold {claims}, to make questions of all, or {claim}, to be the question of one")

    def open(self, kit: Kit) -> Make:
        """Up to ``pairs`` pairs of each row with pictures, by answers of different scores."""
        voice = kit.voice
        writer = Speaker(voice.model, voice.encoder.processor, Decoding(max_new_tokens=256, temperature=0))
        return lambda row, seed: self._pairs(row, voice, writer, seed)

    def _pairs(self, row: Answered, speaker: Speaker, writer: Speaker, seed: int) -> tuple[VLMPair, ...] | str:
        if not row.images:
            return "the row has no picture that claims could be checked against"
        pictures = [decode(image) for image in row.images]
        said = speaker.say_each(
            row.prompt, pictures, seed_of(seed, "answers"), [""] * self.candidates, name=row.sample_id
        )  # fmt: skip
        answers = list(dict.fromkeys(answer.strip() for answer in said if answer.strip()))
        judged = [found for answer in answers if (found := self.judged(row, answer, writer, pictures)) is not None]
        if len(judged) < 2:
            return f"{len(judged)} of {self.candidates} answers differ and make claims that could be asked about"
        found = [pair for pair in combinations(judged, 2) if abs(pair[0].score - pair[1].score) >= self.gap]
        if not found:
            return f"no two answers differ by {self.gap} rejected claims"
        order = torch.randperm(len(found), generator=generator_of(seed))[: self.pairs].tolist()
        taken = [found[place] for place in sorted(order)]
        return tuple(_pair(row, one, other, number) for number, (one, other) in enumerate(taken))

    def judged(self, row: Answered, answer: str, writer: Speaker, pictures: list[Image.Image]) -> Judged | None:
        """``answer`` divided and asked about; None where it states nothing, or not each claim became a question."""
        claims = self._claims(row, answer, writer)
        questions = self._questions(row, claims, writer)
        if not claims or len(questions) != len(claims):
            return None
        asked = [f"{question} {self.request}".strip() for question in questions]
        yes = tuple(chance_of_yes(writer, question, pictures, row.sample_id) for question in asked)
        return Judged(answer, tuple(claims), tuple(questions), yes)

    def _claims(self, row: Answered, answer: str, writer: Speaker) -> list[str]:
        if self.split == SENTENCES:
            return [sentence.strip() for sentence in sentences(answer) if sentence.strip()]
        question = row.prompt[-1].text.strip()
        return items(_told(writer, self.split.replace("{question}", question).replace("{answer}", answer), row))

    def _questions(self, row: Answered, claims: list[str], writer: Speaker) -> list[str]:
        if not claims or "{claim}" in self.turn:
            return [self.turn.replace("{claim}", claim) for claim in claims]
        listed = "\n".join(f"- {claim}" for claim in claims)
        return items(_told(writer, self.turn.replace("{claims}", listed), row))


@torch.no_grad()
def chance_of_yes(speaker: Speaker, question: str, pictures: list[Image.Image], name: str) -> float:
    """(p(yes) + p(Yes)) / (p(yes) + p(Yes) + p(no) + p(No)) of the first token of the answer to ``question``.

    ValueError where yes and no begin with the same token in this model's vocabulary.
    """
    content = (*(ImagePart(number) for number in range(len(pictures))), question)
    told = speaker.encoder.prompt((Message("user", content),), pictures, name)
    first = {word: int(speaker.encoder.answer(told, word, name).input_ids[0]) for word in ("yes", "Yes", "no", "No")}
    if {first["yes"], first["Yes"]} & {first["no"], first["No"]}:
        raise ValueError(f"{name}: yes and no begin with the same token in this model's vocabulary")
    chances = speaker.logits(told, torch.tensor([first["yes"]]))[0].float().softmax(-1)
    yes, no = (float(chances[list(tokens)].sum()) for tokens in _sets(first))
    return yes / (yes + no)


def items(text: str) -> list[str]:
    """The items of a list in ``text``: lines that begin with a hyphen, star, bullet or number."""
    return [match[1] for line in text.splitlines() if (match := _ITEM.match(line)) is not None]


def _sets(first: dict[str, int]) -> tuple[set[int], set[int]]:
    return {first["yes"], first["Yes"]}, {first["no"], first["No"]}


def _told(writer: Speaker, asked: str, row: Answered) -> str:
    return writer.say((Message("user", (asked,)),), (), 0, name=row.sample_id)


def _pair(row: Answered, one: Judged, other: Judged, number: int) -> VLMPair:
    better, worse = (one, other) if one.score > other.score else (other, one)
    how: dict[str, Any] = {"negative": "divide_and_conquer", "number": number}
    for side, judged in (("chosen", better), ("rejected", worse)):
        how |= {f"{side}_score": judged.score, f"{side}_claims": list(judged.claims)}
        how |= {f"{side}_questions": list(judged.questions), f"{side}_yes": [round(chance, 4) for chance in judged.yes]}
    return replace(
        row.against(worse.answer, chosen=better.answer),
        sample_id=f"{row.sample_id}/{number}",
        margin=float(better.score - worse.score),
        extras={**row.extras, **({"response": row.response} if row.response else {}), **how},
    )
