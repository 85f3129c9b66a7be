"""How few votes, or voters, one has to drop for another model to come first."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.comparisons import Comparisons
from mmalign.arena.davidson import RIDGE, Design, Fit, design_of, fit
from mmalign.arena.graph import components, tables
from mmalign.arena.uncertainty import comparison_slopes

Unit = Literal["vote", "voter"]


@dataclass(frozen=True)
class Flip:
    """Dropping ``dropped`` of ``total`` votes (or voters) puts ``rival`` before ``top``.

    The set was found greedily: those with the largest influence to first order on the difference of the two go first,
    and the model is fitted again without them. A smaller set may exist, so ``dropped`` is an upper bound. It is
    None where no such set of at most half of them was found.
    """

    unit: Unit
    top: str
    rival: str | None
    dropped: int | None
    total: int
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.dropped is None:
            return (
                f"no set of up to half of the {self.total} {self.unit}s was found that holds up the lead of {self.top}"
            )
        return (
            f"without {self.dropped} of {self.total} {self.unit}s ({self.dropped / self.total:.2%}) {self.rival} leads "
            f"instead of {self.top} (found greedily: fewer may do)"
        )


def smallest_flip(data: Comparisons, *, unit: Unit = "vote", rivals: int = 3, ridge: float = RIDGE) -> Flip:
    """The smallest set of votes or voters, as far as a greedy search finds it, whose loss changes who is first.

    The ``rivals`` next best of the largest connected component are tried. ``ids`` are the votes' numbers
    (``data.vote``) or the voters' (``data.user``). Raises ValueError where there is nobody else to lead.
    """
    if unit not in ("vote", "voter"):
        raise ValueError(f"unit={unit!r} must be vote or voter")
    design = design_of(data, position=bool((data.left != 0).any()))
    found = fit(design, design.counts(data), ridge=ridge)
    wins, ties = tables(data)
    group = np.array(components(wins + ties)[0])
    order = group[np.argsort(-found.parameters[group], kind="stable")]
    if len(order) < 2:
        raise ValueError("a lead needs at least two connected models")
    numbers = data.vote if unit == "vote" else data.user
    units, owner = np.unique(numbers, return_inverse=True)
    top, best = int(order[0]), None
    for rival in order[1 : rivals + 1]:
        most = len(units) // 2 if best is None else len(best[1]) - 1
        ids = _flip(design, data, found, owner, len(units), (top, int(rival)), most, ridge)
        if ids is not None:
            best = (int(rival), units[ids])
    name = data.players[top]
    if best is None:
        return Flip(unit, name, None, None, len(units))
    return Flip(unit, name, data.players[best[0]], len(best[1]), len(units), tuple(sorted(best[1].tolist())))


def _flip(
    design: Design,
    data: Comparisons,
    found: Fit,
    owner: NDArray[np.int64],
    total: int,
    two: tuple[int, int],
    most: int,
    ridge: float,
) -> NDArray[np.int64] | None:
    """The fewest units, of those that hold up the lead of ``two[0]`` over ``two[1]`` most, without which it is gone."""
    influence = np.bincount(owner, _influence(design, data, found, two), total)
    order = np.argsort(-influence, kind="stable")[: int((influence > 0).sum())]
    place = np.empty(total, dtype=np.int64)
    place.fill(total)
    place[order] = np.arange(len(order))

    def flipped(number: int) -> bool:
        kept = (place[owner] >= number).astype(float)
        again = fit(design, design.counts(data, kept), ridge=ridge, start=found.parameters).parameters
        return bool(again[two[1]] > again[two[0]])

    low, high = 0, 1  # the lead stands without low units; where does it fall?
    limit = min(most, len(order))
    while high <= limit and not flipped(high):
        low, high = high, min(2 * high, limit) if high < limit else limit + 1
    if high > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if flipped(middle) else (middle, high)
    return order[:high]


def _influence(design: Design, data: Comparisons, found: Fit, two: tuple[int, int]) -> NDArray[np.float64]:
    """By how much each comparison holds up parameter ``two[0]`` - ``two[1]``: contrast' H^-1 score, [n]."""
    contrast = np.zeros(design.size)
    contrast[two[0]], contrast[two[1]] = 1, -1
    pull = np.linalg.solve(found.information, contrast)
    m, t = design.players, int(design.with_ties)
    by_d, by_tie = comparison_slopes(design, data, found)
    along = pull[data.first] - pull[data.second] + (design.effects @ pull[m + t :])[design.cell]
    return by_d * along + (by_tie * pull[m] if t else 0.0)


def without(data: Comparisons, flip: Flip) -> Comparisons:
    """``data`` without the votes or voters of ``flip``, to look at the board that is left."""
    numbers = data.vote if flip.unit == "vote" else data.user
    kept = ~np.isin(numbers, np.array(flip.ids, dtype=np.int64))
    _, user = np.unique(data.user[kept], return_inverse=True)
    arrays = {name: getattr(data, name)[kept] for name in ("first", "second", "outcome", "left", "tie_offered", "vote")}
    covariates = {name: values[kept] for name, values in data.covariates.items()}
    return replace(data, **arrays, user=user, users=int(user.max(initial=-1)) + 1, covariates=covariates)
