"""Branches of pairs of responses: whose response, and which pictures it is scored with."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.losses import Objective
from mmalign.training.config import Config, VLMConfig
from mmalign.training.image_branches import reward_problem
from mmalign.types import CHOSEN, REJECTED, VLMPair

GOLD = "gold"
"""``gold``: a third response that is right, ``extras["gold"]`` of the row, with the pictures of the chosen one."""
SIDES = (CHOSEN, REJECTED, GOLD)
OFFERED = frozenset({"preference", "margin"})
NO_PICTURES = "null"
"""``chosen@null``: the prompt without its pictures, and without the tokens that stand for them."""
RETRIEVED = "retrieved"
"""``chosen@retrieved``: other pictures that the row itself brings (``VLMPair.branch_images``)."""
FLIP, OTHERWISE = "flip", "otherwise"
Change = tuple[str, dict[str, Any]]  # name of a corruption and its parameters


@dataclass(frozen=True)
class Branch:
    """``name`` as in the objective: the response of ``side``, with pictures changed as ``change`` says, or as they are.

    ``corruption`` and ``parameters``: what :func:`mmalign.corruptions.corrupt` is called with; None where the pictures
    are the row's own (``branch_images``) or left away. ``otherwise``: the same for rows that no flip makes wrong.
    """

    name: str
    side: str
    change: str | None = None
    corruption: str | None = None
    parameters: dict[str, Any] | None = None
    otherwise: Change | None = None

    def of(self, row: VLMPair) -> Change | None:
        """The corruption of this row's pictures and videos; None where they stay as they are, or the row lacks it."""
        if self.corruption is None or self.change in row.branch_images:
            return None
        if self.corruption == FLIP and not _flip_counts(row, self.side):
            return self.otherwise
        return self.corruption, self.parameters or {}

    def lacking(self, row: VLMPair) -> str:
        """Why ``row`` has no such branch; "" where it has."""
        from mmalign.corruptions import VIDEO_CORRUPTIONS

        if self.side == GOLD and not gold_of(row):
            return "bring no gold response (extras.gold)"
        if self.change is None or self.change == NO_PICTURES or self.change in row.branch_images:
            return ""
        if self.corruption is None:
            return "bring no picture for it"
        images, videos = row.images_of(self.side), row.videos_of(self.side)
        if not images and not videos:
            return "show nothing that could be corrupted"
        change = self.of(row)
        if change is None:
            return "do not tell left from right, so the mirrored picture would be as right"
        return "show no video" if change[0] in VIDEO_CORRUPTIONS and not videos else ""


def gold_of(row: VLMPair) -> str:
    """The row's gold response, "" where it has none."""
    return str(row.extras.get(GOLD) or "")


def told_lacking(branches: Sequence[Branch], rows: Iterable[VLMPair]) -> str:
    """For each of ``branches``, how many of ``rows`` lack it and why; "" where none does.

    ValueError where all of them do: the objective's term would count for nothing.
    """
    reasons: dict[str, Counter[str]] = {branch.name: Counter() for branch in branches}
    total = 0
    for row in rows:
        total += 1
        for branch in branches:
            reasons[branch.name].update(filter(None, [branch.lacking(row)]))
    told = []
    for name, of_branch in reasons.items():
        if total and of_branch.total() == total:
            raise ValueError(f"no row has {name}, so its term would count for nothing: they {min(of_branch)}")
        told += [f"{number} of {total} rows have no {name}: they {why}." for why, number in of_branch.items()]
    return " ".join(told)


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
            corruption, parameters, otherwise = _corruption(change, vlm)
            branches.append(Branch(name, side, change, corruption, parameters, otherwise))
    return tuple(branches)


def branch_problems(objective: Objective, vlm: VLMConfig) -> list[str]:
    """What is wrong with the objective's branches and ``vlm.corruptions``, one line each."""
    problems, used = [], set()
    for name in objective.branches:
        side, at, change = name.partition("@")
        used.add(change)
        if side not in SIDES or (at and (not change or side == GOLD)):
            problems.append(
                f"there is no branch {name}: the rows have {CHOSEN} and {REJECTED}, alone or with other pictures, as "
                f"{CHOSEN}@crop, and may have {GOLD}"
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
        corruption, parameters, otherwise = _corruption(change, vlm)
        check(corruption, parameters)
        if otherwise is not None and corruption != FLIP:
            return [f"branch {name}: {OTHERWISE} would be ignored: only {FLIP} may leave a row without it"]
        if otherwise is not None:
            check(*otherwise)
            if otherwise[0] == FLIP:
                return [f"branch {name}: {OTHERWISE} must be another corruption than {FLIP}"]
    except ValueError as error:
        return [f"branch {name}: {error}; {NO_PICTURES} is no picture, {RETRIEVED} another one that the row brings"]
    return []


def _corruption(change: str, vlm: VLMConfig) -> tuple[str, dict[str, Any], Change | None]:
    """(corruption, parameters, what is done where a flip makes nothing wrong) of what stands behind an @."""
    parameters = dict(vlm.corruptions.get(change, {}))
    otherwise = parameters.pop(OTHERWISE, None)
    if otherwise is not None:
        given = {"corruption": otherwise} if isinstance(otherwise, str) else dict(otherwise)
        if "corruption" not in given:
            raise ValueError(f"{OTHERWISE}: {given} names no corruption; write {{corruption: NAME, ...}} or NAME")
        otherwise = str(given.pop("corruption")), given
    return str(parameters.pop("corruption", change)), parameters, otherwise


def _flip_counts(row: VLMPair, side: str) -> bool:
    from mmalign.corruptions import flip_makes_wrong

    return flip_makes_wrong(f"{row.prompt_text}\n{getattr(row, side)}")
