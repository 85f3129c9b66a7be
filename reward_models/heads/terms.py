"""What a head gives, in the form that losses read: scores by branch, and what they ask for beside scores."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.types import CANDIDATES, CHOSEN, REJECTED, BranchScores, GroupScores, Scores
from reward_models.heads import PER_PICTURE


def pair_scores(
    given: Mapping[str, Tensor],
    *,
    preference: Tensor | None = None,
    margin: Tensor | None = None,
    part_preference: Tensor | None = None,
    present: Mapping[str, Tensor] | None = None,
) -> Scores:
    """Scores of pairs, ``given`` for k = 2 pictures, chosen first: ``logp`` of a branch is its reward."""
    extras = {name: value for name, value in given.items() if name != "score" and name not in PER_PICTURE}
    for name in PER_PICTURE:
        if name in given:
            extras |= {f"{side}_{name}": given[name][:, place] for place, side in enumerate((CHOSEN, REJECTED))}
    if part_preference is not None:
        extras["part_preference"] = part_preference
    score = given["score"]
    branches = {side: BranchScores(score[:, place]) for place, side in enumerate((CHOSEN, REJECTED))}
    return Scores(branches, preference=preference, margin=margin, present=dict(present or {}), extras=extras)


def list_scores(given: Mapping[str, Tensor], labels: Tensor, present: Mapping[str, Tensor]) -> Scores:
    """Scores of k ranked candidates. A reward model has no reference: its log-ratio is its score less 0."""
    score = given["score"]
    return Scores({CANDIDATES: GroupScores(score, torch.zeros_like(score))}, labels=labels, present=dict(present))
