"""What judges pictures: the playground's oracle, or any reward model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

from mmalign.rewards import RewardModel


@dataclass(frozen=True)
class ImageScores:
    """One score per picture, higher is better; ``attributes``: what is right in each picture, where that is known."""

    scores: Sequence[float]
    attributes: Sequence[Mapping[str, bool]] | None = None


@runtime_checkable
class ImageScorer(Protocol):
    """Scores pictures against their prompts."""

    name: str

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> ImageScores:
        """Scores for pictures [n] against prompts [n]."""
        ...


class OracleScorer:
    """Score = share of the caption's attributes that are right in the pixels; playground pictures only."""

    name = "oracle"

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> ImageScores:
        from mmalign.playground.oracle import judge

        judgements = [judge(image, prompt) for prompt, image in zip(prompts, images, strict=True)]
        return ImageScores([each.share for each in judgements], [each.correct for each in judgements])


class RewardScorer:
    """Score = the reward model's number; it knows no attributes."""

    def __init__(self, reward: RewardModel) -> None:
        self.reward = reward
        self.name = reward.name

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> ImageScores:
        with torch.no_grad():
            return ImageScores(self.reward.score(list(prompts), list(images)).detach().double().cpu().tolist())


def find_scorer(name: str) -> ImageScorer:
    """``oracle`` with its attributes, or the installed reward model of that name."""
    from mmalign.rewards import find_reward

    return OracleScorer() if name == OracleScorer.name else RewardScorer(find_reward(name))
