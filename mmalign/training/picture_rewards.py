"""Reward models that watch a run: they score the pictures of the fixed prompts (``evaluation.pictures``)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from mmalign.labelling.rewards import open_reward
from mmalign.rewards import RewardModel
from mmalign.training.config.evaluation import PicturesConfig

ROLES = ("proxy_reward", "held_out_reward")


@dataclass(frozen=True)
class PictureRewards:
    """``models``: role (``proxy_reward``, ``held_out_reward``) -> the model, which stays in memory."""

    models: Mapping[str, RewardModel]

    @classmethod
    def of(cls, pictures: PicturesConfig | None) -> "PictureRewards | None":
        """Those that ``pictures`` names; None where it names none, and in processes that do not report.

        ValueError where a model cannot be loaded, or the oracle is to judge prompts that it cannot read.
        """
        named = {role: getattr(pictures, role) for role in ROLES if pictures and getattr(pictures, role)}
        if not named or os.environ.get("RANK", "0") != "0":
            return None
        if "oracle" in named.values():
            from mmalign.playground.captions import parse

            for prompt in pictures.prompts if pictures else ():
                parse(prompt)
        return cls({role: open_reward(name) for role, name in named.items()})

    def mean(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, float]:
        """Role -> mean score of the pictures."""
        with torch.no_grad():
            return {role: float(model.score(prompts, images).double().mean()) for role, model in self.models.items()}
