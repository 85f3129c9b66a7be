"""How much a vision-language model makes up, by gold: descriptions and answers on the playground's pictures.

Every measure is a ratio of sums over pictures (wrong claims / claims, say), so pictures are what its interval
resamples, the same for base and aligned. No model judges: :mod:`mmalign.playground.descriptions` reads what was said.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmalign.evaluation.vlm_answers import Decoding, greedy_answers
from mmalign.evaluation.winrate import Estimate, MeanDifference, interval, prompt_draws
from mmalign.playground.descriptions import DescriptionJudgement, judge_description
from mmalign.playground.looking import Look, blank
from mmalign.playground.questions import DESCRIBE, NEGATIVES, Question, read_answer

DESCRIPTION_TOKENS, ANSWER_TOKENS = 40, 4
CLAIMS = ("shape", "colour", "style", "size", "count", "relation", "background")
Progress = Callable[[int], None] | None
Ratios = dict[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Said:
    """What a model said to each picture: its description, answers to the ordinary questions with the picture and with
    a blank one, and to the questions for existence (``present``, then one per way of choosing absent shapes)."""

    descriptions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    blank_answers: tuple[tuple[str, ...], ...]
    existence: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Measures:
    """Name -> per picture (numerator, denominator); the measure is the sum of the first over the sum of the second.

    hallucination_rate      descriptions with a wrong claim (CHAIR per sentence)
    wrong_claims            wrong claims among claims (CHAIR per mention)
    wrong_objects           shapes that are not there among shapes mentioned
    wrong_KIND              the same for one kind of claim
    attribute_recall        claims of the gold description that are made and right
    object_recall           its shapes alone
    words                   words per description
    unknown_words           words outside of the playground's among all
    repeats                 things said again word for word, per description
    accuracy                ordinary questions with the right answer
    accuracy_blank          the same with a blank picture: the text prior alone
    prior_gap               accuracy - accuracy_blank: what looking is good for
    pope_random, pope_popular, pope_adversarial    existence questions with the right answer, half of them true
    yes_ratio               answers "yes" to the existence questions, half of them true, with random negatives
    """

    ratios: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    n_pictures: int

    def __getitem__(self, name: str) -> float:
        top, bottom = self.ratios[name]
        return sum(top) / sum(bottom)

    def values(self) -> dict[str, float]:
        """Every measure as a number."""
        return {name: self[name] for name in self.ratios}


@dataclass(frozen=True)
class Comparison:
    """Base against aligned on the same pictures, each measure with 95 % intervals that resample pictures."""

    measures: dict[str, MeanDifference]
    n_pictures: int
    bootstrap: int
    seed: int

    def summary(self) -> str:
        """``hallucination rate 0.412 -> 0.287 (-0.125 [-0.170, -0.080]) over 200 pictures; ...``."""
        parts = [
            f"{name.replace('_', ' ')} {change.base.value:.3f} -> {change.aligned.value:.3f} ({change.difference})"
            for name, change in self.measures.items()
            if name in ("hallucination_rate", "attribute_recall", "accuracy")
        ]
        return f"{parts[0]} over {self.n_pictures} pictures; {'; '.join(parts[1:])}"

    def to_json(self) -> str:
        """JSON text with ``kind: vlm_playground`` and every number."""
        return json.dumps({"kind": "vlm_playground", **asdict(self)}, indent=2) + "\n"


def measure(
    model: Any,
    processor: Any,
    looks: Sequence[Look],
    *,
    batch_size: int = 64,
    progress: Progress = None,
    decoding: Decoding | None = None,
) -> Measures:
    """Greedy descriptions and answers of ``model`` to every picture, against gold.

    ``progress`` is called with the number of questions just answered, of :func:`questions_of` in all. ``decoding``: see
    :func:`mmalign.evaluation.vlm_answers.greedy_answers`.
    """
    said = listen(model, processor, looks, batch_size=batch_size, progress=progress, decoding=decoding)
    return judge(looks, said)


def questions_of(looks: Sequence[Look]) -> int:
    """How many questions :func:`measure` puts to a model, requests for descriptions included."""
    return sum(2 + 2 * len(look.questions) + len(look.absent) for look in looks)


def listen(
    model: Any,
    processor: Any,
    looks: Sequence[Look],
    *,
    batch_size: int = 64,
    progress: Progress = None,
    decoding: Decoding | None = None,
) -> Said:
    """Everything that ``model`` says to ``looks``, greedily."""
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "decoding": decoding}
    images = [look.image for look in looks]
    descriptions = greedy_answers(
        model, processor, images, [DESCRIBE[0]] * len(looks), max_new_tokens=DESCRIPTION_TOKENS, **settings
    )
    asked = [(index, question.text) for index, look in enumerate(looks) for question in look.questions]
    checks = [
        (index, question.text) for index, look in enumerate(looks) for question in (look.present, *look.absent.values())
    ]

    def answers(questions: Sequence[tuple[int, str]], pictures: Sequence[Image.Image]) -> list[list[str]]:
        shown = [pictures[index] for index, _ in questions]
        texts = [text for _, text in questions]
        found = greedy_answers(model, processor, shown, texts, max_new_tokens=ANSWER_TOKENS, **settings)
        rows: list[list[str]] = [[] for _ in looks]
        for (index, _), answer in zip(questions, found, strict=True):
            rows[index].append(answer)
        return rows

    names = [["present", *look.absent] for look in looks]
    existence = [dict(zip(name, row, strict=True)) for name, row in zip(names, answers(checks, images), strict=True)]
    with_picture, without = answers(asked, images), answers(asked, [blank(image) for image in images])
    return Said(tuple(descriptions), tuple(map(tuple, with_picture)), tuple(map(tuple, without)), tuple(existence))


def judge(looks: Sequence[Look], said: Said) -> Measures:
    """The measures of what was said to ``looks``."""
    if not len(looks) == len(said.descriptions) == len(said.answers) == len(said.existence):
        raise ValueError(f"{len(looks)} pictures, but {len(said.descriptions)} descriptions; one answer per question")
    verdicts = [judge_description(text, look.scene) for text, look in zip(said.descriptions, looks, strict=True)]
    ratios = _description_ratios(verdicts) | _answer_ratios(looks, said)
    kept = {name: (tuple(map(float, top)), tuple(map(float, low))) for name, (top, low) in ratios.items() if sum(low)}
    return Measures(kept, len(looks))


def compare(base: Measures, aligned: Measures, *, bootstrap: int = 2000, seed: int = 0) -> Comparison:
    """Both sides on the same pictures; a measure that one side lacks (it mentions no relation, say) is left out."""
    if base.n_pictures != aligned.n_pictures:
        raise ValueError(f"base saw {base.n_pictures} pictures and aligned {aligned.n_pictures}; show both the same")
    draws = prompt_draws(base.n_pictures, bootstrap=bootstrap, seed=seed)
    measures = {}
    for name in base.ratios:
        if name in aligned.ratios:
            sides = [_resampled(side.ratios[name], draws) for side in (base, aligned)]
            drawn = [*sides, sides[1] - sides[0]]
            values = (base[name], aligned[name], aligned[name] - base[name])
            estimates = [Estimate(value, *interval(column)) for value, column in zip(values, drawn, strict=True)]
            measures[name] = MeanDifference(*estimates, n_prompts=base.n_pictures)
    return Comparison(measures, base.n_pictures, bootstrap, seed)


def _resampled(ratio: tuple[tuple[float, ...], tuple[float, ...]], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio in every resample; one in which nothing is asked counts as the ratio itself."""
    top, bottom = (draws @ np.asarray(part) for part in ratio)
    whole = sum(ratio[0]) / sum(ratio[1])
    return np.divide(top, bottom, out=np.full_like(top, whole), where=bottom > 0)


def _description_ratios(verdicts: Sequence[DescriptionJudgement]) -> Ratios:
    ones = [1] * len(verdicts)
    said = [verdict.description for verdict in verdicts]
    words = [text.n_words for text in said]
    ratios: Ratios = {
        "hallucination_rate": ([verdict.hallucinates for verdict in verdicts], ones),
        "wrong_claims": ([len(verdict.wrong) for verdict in verdicts], [len(verdict.claims) for verdict in verdicts]),
        "attribute_recall": (
            [sum(verdict.found.values()) for verdict in verdicts],
            [sum(verdict.asked.values()) for verdict in verdicts],
        ),
        "object_recall": (
            [verdict.found["shape"] for verdict in verdicts],
            [verdict.asked["shape"] for verdict in verdicts],
        ),
        "words": (words, ones),
        "unknown_words": ([len(text.unknown) for text in said], words),
        "repeats": ([text.repeats for text in said], ones),
    }
    for kind in CLAIMS:
        name = "wrong_objects" if kind == "shape" else f"wrong_{kind}"
        made = [[claim for claim in verdict.claims if claim.kind == kind] for verdict in verdicts]
        ratios[name] = ([sum(not claim.right for claim in claims) for claims in made], [len(c) for c in made])
    return ratios


def _answer_ratios(looks: Sequence[Look], said: Said) -> Ratios:
    with_picture = [_right(look.questions, row) for look, row in zip(looks, said.answers, strict=True)]
    without = [_right(look.questions, row) for look, row in zip(looks, said.blank_answers, strict=True)]
    asked = [len(look.questions) for look in looks]
    ratios: Ratios = {
        "accuracy": (with_picture, asked),
        "accuracy_blank": (without, asked),
        "prior_gap": ([seen - unseen for seen, unseen in zip(with_picture, without, strict=True)], asked),
    }
    for name in NEGATIVES:
        right = [
            _right((look.present, look.absent[name]), (row["present"], row[name]))
            for look, row in zip(looks, said.existence, strict=True)
        ]
        ratios[f"pope_{name}"] = (right, [2] * len(looks))
    yes = [sum(read_answer(row[name]) == "yes" for name in ("present", "random")) for row in said.existence]
    ratios["yes_ratio"] = (yes, [2] * len(looks))
    return ratios


def _right(questions: Sequence[Question], answers: Sequence[str]) -> int:
    return sum(read_answer(said) == question.answer for question, said in zip(questions, answers, strict=True))
