"""What a reward model is, what it may offer beyond scores, and how several share the work on one batch."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@runtime_checkable
class RewardModel(Protocol):
    """Scores pictures against prompts, higher is better.

    ``scale`` says in words what the numbers are (``"cosine, about 0.2 to 0.35"``); scores of models with different
    scales or versions are never compared. ``prompt_limit``: tokens of a prompt that count, None when all do.
    ``licence`` and ``source`` are those of the weights: where they come from.
    """

    name: str
    scale: str
    prompt_limit: int | None
    version: str
    licence: str
    source: str

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """One score per (prompt, picture)."""
        ...


@runtime_checkable
class DifferentiableReward(Protocol):
    """A reward that pictures can be optimised for."""

    def score_tensor(
        self, prompts: Sequence[str], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """:meth:`RewardModel.score` of pictures with values in 0..1; gradients reach the pixels."""
        ...


@runtime_checkable
class EmbeddingReward(Protocol):
    """A reward that is a function of the prompt and of a picture's embedding.

    Two rewards of the same ``backbone`` (weights, precision, device and preprocessing) have the same embeddings.
    """

    backbone: str

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch width"]:
        """The embedding that scores are computed from, float32, not normalised."""
        ...

    def score_embedded(self, prompts: Sequence[str], embedded: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """:meth:`RewardModel.score` for pictures that are embedded already."""
        ...


def score_many(
    rewards: Sequence[RewardModel], prompts: Sequence[str], images: Sequence[Image.Image]
) -> dict[str, Float[Tensor, " batch"]]:
    """Name -> scores of every reward on the same pictures; each backbone sees each picture once."""
    embedded: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    shared = _shared_backbones(rewards)
    for reward in rewards:
        if reward.name in scores:
            raise ValueError(f"reward {reward.name!r} is given twice")
        if isinstance(reward, EmbeddingReward) and shared.get(reward.backbone, 0) > 1:
            with torch.no_grad():
                if reward.backbone not in embedded:
                    embedded[reward.backbone] = reward.embed(images)
                scores[reward.name] = reward.score_embedded(prompts, embedded[reward.backbone])
        else:
            scores[reward.name] = reward.score(prompts, images)
    return scores


def _shared_backbones(rewards: Sequence[RewardModel]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for reward in rewards:
        if isinstance(reward, EmbeddingReward):
            counts[reward.backbone] = counts.get(reward.backbone, 0) + 1
    return counts
