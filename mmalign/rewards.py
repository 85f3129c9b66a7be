"""Reward models: one score per picture. They are plug-ins, found through the entry-point group ``mmalign.rewards``.

A package offers one with ``[project.entry-points."mmalign.rewards"]`` and a line ``name = "package.module:Model"``,
where ``Model()`` gives the model, loaded. This module imports none of them until one is asked for by name.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

GROUP = "mmalign.rewards"


@runtime_checkable
class RewardModel(Protocol):
    """Scores pictures against prompts, higher is better.

    ``scale`` says in words what the numbers are (``"cosine, about 0.2 to 0.35"``); scores of models with different
    scales or versions are never compared. ``prompt_limit``: tokens of a prompt that count, None when all do.
    """

    name: str
    scale: str
    prompt_limit: int | None
    version: str

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """One score per (prompt, picture)."""
        ...


class OracleReward:
    """reward = share of the caption's attributes that are right in the pixels, 0 to 1: the playground's gold label."""

    name = "oracle"
    scale = "share of correct attributes, 0 to 1"
    prompt_limit: int | None = None
    version = "1"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Shares for pictures [batch] of playground captions [batch]; other prompts are a ValueError."""
        from mmalign.playground.oracle import judge

        return torch.tensor([judge(image, prompt).share for prompt, image in zip(prompts, images, strict=True)])


BUILT_IN: Mapping[str, Callable[[], RewardModel]] = {"oracle": OracleReward}


def installed_rewards() -> list[str]:
    """Names that :func:`find_reward` takes on this machine, sorted."""
    return sorted({*BUILT_IN, *_plug_ins()})


def find_reward(name: str) -> RewardModel:
    """The reward model of that name, loaded: a built-in one or one from the entry-point group ``mmalign.rewards``."""
    plug_ins = _plug_ins()
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name not in plug_ins:
        raise ValueError(
            f"no reward model {name!r}; installed: {', '.join(installed_rewards())}. "
            f"Packages add more through the entry-point group {GROUP!r}"
        )
    model = plug_ins[name].load()()
    if not isinstance(model, RewardModel):
        raise ValueError(
            f"{plug_ins[name].value}, installed as reward {name!r}, is not a reward model: "
            f"it needs score(prompts, images), name, scale, prompt_limit and version"
        )
    return model


def _plug_ins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN or found.get(entry.name, entry) != entry:
            raise ValueError(f"reward {entry.name!r} of {entry.value} is taken already: uninstall or rename one")
        found[entry.name] = entry
    return found
