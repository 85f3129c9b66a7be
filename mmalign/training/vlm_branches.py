"""Branches of pairs of responses: whose response, and which pictures it is scored with."""

from dataclasses import dataclass
from typing import Any

from mmalign.losses import Objective
from mmalign.training.config import Config, VLMConfig
from mmalign.training.image_branches import reward_problem
from mmalign.types import CHOSEN, REJECTED

SIDES = (CHOSEN, REJECTED)
OFFERED = frozenset({"preference", "margin"})
NO_PICTURES = "null"
"""``chosen@null``: the prompt without its pictures, and without the tokens that stand for them."""
RETRIEVED = "retrieved"
"""``chosen@retrieved``: other pictures that the row itself brings (``VLMPair.branch_images``)."""


@dataclass(frozen=True)
class Branch:
    """``name`` as in the objective: the response of ``side``, with pictures changed as ``change`` says, or as they are.

    ``corruption`` and ``parameters``: what :func:`mmalign.corruptions.corrupt` is called with; None where the pictures
    are the row's own (``branch_images``) or left away.
    """

    name: str
    side: str
    change: str | None = None
    corruption: str | None = None
    parameters: dict[str, Any] | None = None


def branches_of(objective: Objective, vlm: VLMConfig) -> tuple[Branch, ...]:
    """Every branch of the objective; ValueError with all that cannot be made, and corruptions that no branch names."""
    problems, branches = branch_problems(objective, vlm), []
    if problems:
        raise ValueError("; ".join(problems))
    for name in objective.branches:
        side, _, change = name.partition("@")
        if not change:
            branches.append(Branch(name, side))
        elif change in (NO_PICTURES, RETRIEVED):
            branches.append(Branch(name, side, change))
        else:
            corruption, parameters = _corruption(change, vlm)
            branches.append(Branch(name, side, change, corruption, parameters))
    return tuple(branches)


def branch_problems(objective: Objective, vlm: VLMConfig) -> list[str]:
    """What is wrong with the objective's branches and ``vlm.corruptions``, one line each."""
    problems, used = [], set()
    for name in objective.branches:
        side, at, change = name.partition("@")
        used.add(change)
        if side not in SIDES or (at and not change):
            problems.append(
                f"there is no branch {name}: the rows have {' and '.join(SIDES)}, alone or with other pictures, as "
                f"{CHOSEN}@crop"
            )
        elif change and change not in (NO_PICTURES, RETRIEVED):
            problems += _corruption_problems(name, change, vlm)
    problems += [
        f"vlm.corruptions.{name} would be ignored: no branch ends in @{name}" for name in vlm.corruptions.keys() - used
    ]
    if (problem := reward_problem(objective)) is not None:
        problems.append(problem)
    labels = sorted(objective.asks - OFFERED)
    if labels:
        problems.append(f"the rows are pairs of responses and have no {' and no '.join(labels)}")
    return problems


def checked_vlm_objective(config: Config) -> Objective:
    """The objective of ``config``; ValueError where branches, reference or labels do not fit pairs of responses."""
    from mmalign.training.image_reference import reference_kind

    assert config.vlm is not None
    objective = Objective(config.objective)
    branches_of(objective, config.vlm)
    reference_kind(config, objective)
    return objective


def _corruption_problems(name: str, change: str, vlm: VLMConfig) -> list[str]:
    from mmalign.corruptions import check

    try:
        check(*_corruption(change, vlm))
    except ValueError as error:
        return [f"branch {name}: {error}; {NO_PICTURES} is no picture, {RETRIEVED} another one that the row brings"]
    return []


def _corruption(change: str, vlm: VLMConfig) -> tuple[str, dict[str, Any]]:
    parameters = dict(vlm.corruptions.get(change, {}))
    return str(parameters.pop("corruption", change)), parameters
