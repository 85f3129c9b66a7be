"""A vision-language model as judge: an expected rating of one picture, or which of two is better, in both orders.

Pointwise: sum_r r * p(r) / sum_r p(r) over the ratings 1 to 5, from the probabilities of the digits, so that nothing
has to be parsed and equal answers still differ. Pairwise: asked twice with the pictures swapped, because judges favour
a place; the two answers are averaged, and answers that say nothing are counted, never guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reward_models.cosine import check_lengths, in_batches
from reward_models.vlm import AskedModel
from reward_models.vqascore import local_folder

RATE = (
    'This picture was made from the text: "{}". How well does it show that text, and how good does it look? Answer '
    "with one number from 1 (bad) to 5 (excellent)."
)
COMPARE = (
    'Both pictures were made from the text: "{}". Which one is better, counting how well it shows the text and how '
    "good it looks? Answer with exactly one of: Image 1 is better. Image 2 is better. Both are equal."
)
RATINGS = (1, 2, 3, 4, 5)
_VERDICTS = (
    (re.compile(r"\b(?:image|picture) (?:1|one) is better\b"), 1.0),
    (re.compile(r"\b(?:image|picture) (?:2|two) is better\b"), 0.0),
    (re.compile(r"\b(?:both|equal|equally)\b"), 0.5),
)


@dataclass(frozen=True)
class Comparison:
    """``preference``: p(left is better) of each pair, 0 to 1, None where neither order gave a verdict.

    ``unparsed``: answers without a verdict. ``contradicted``: pairs whose two orders named different pictures, which
    count as ties. ``first``: share of all verdicts, ties left out, for the picture shown first; 0.5 is no bias.
    """

    preference: list[float | None]
    unparsed: int
    contradicted: int
    first: float | None


class Judge:
    """``weights``: folder of a vision-language model. ``rate`` and ``compare_question`` hold ``{}`` for the prompt."""

    name = "vlm-judge"
    scale = "expected rating, 1 to 5"
    prompt_limit: int | None = None

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        rate: str = RATE,
        compare_question: str = COMPARE,
    ) -> None:
        folder = local_folder(self.name, weights)
        for question in (rate, compare_question):
            if "{}" not in question:
                raise ValueError(f"the question {question!r} has no {{}} where the prompt goes")
        self.asked = AskedModel(folder, device=device, dtype=dtype)
        self.rate, self.compare_question, self.batch_size = rate, compare_question, batch_size
        self.version = f"{folder.name}, {rate!r}"
        self.source, self.licence = str(folder), "that of the model"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Expected ratings, ``batch_size`` pictures at a time."""
        return in_batches(self._ratings, prompts, images, self.batch_size, self.asked.device)

    def _ratings(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        questions = [self.rate.replace("{}", prompt) for prompt in prompts]
        answers = [str(rating) for rating in RATINGS]
        chances = self.asked.answer_logps(questions, [[image] for image in images], answers).softmax(-1)
        return (chances * torch.tensor(RATINGS, device=chances.device)).sum(-1)

    def compare(self, prompts: Sequence[str], left: Sequence[Image.Image], right: Sequence[Image.Image]) -> Comparison:
        """Which of two pictures is better, each pair asked in both orders."""
        check_lengths(prompts, left)
        check_lengths(prompts, right)
        orders = [self._verdicts(prompts, left, right), self._verdicts(prompts, right, left)]
        swapped = [None if verdict is None else 1 - verdict for verdict in orders[1]]
        preference, contradicted = [], 0
        for pair in zip(orders[0], swapped, strict=True):
            given = [verdict for verdict in pair if verdict is not None]
            preference.append(sum(given) / len(given) if given else None)
            contradicted += sorted(given) == [0, 1]
        verdicts = [verdict for order in orders for verdict in order if verdict is not None]
        decided = [verdict for verdict in verdicts if verdict != 0.5]
        return Comparison(
            preference,
            unparsed=2 * len(prompts) - len(verdicts),
            contradicted=contradicted,
            first=sum(decided) / len(decided) if decided else None,
        )

    def _verdicts(
        self, prompts: Sequence[str], first: Sequence[Image.Image], second: Sequence[Image.Image]
    ) -> list[float | None]:
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            questions = [self.compare_question.replace("{}", prompt) for prompt in prompts[rows]]
            pairs = [list(pair) for pair in zip(first[rows], second[rows], strict=True)]
            answers += self.asked.answers(questions, pairs)
        return [parse_verdict(answer) for answer in answers]


def parse_verdict(answer: str) -> float | None:
    """1 where the first picture is called better, 0 for the second, 0.5 for a tie; None for none or several of them."""
    found = [value for pattern, value in _VERDICTS if pattern.search(answer.lower())]
    return found[0] if len(found) == 1 else None
