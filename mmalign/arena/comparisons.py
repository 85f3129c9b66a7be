"""Votes as arrays of comparisons between two players, with a count of everything that was left out and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.hold_out import HoldOut
from mmalign.arena.types import Vote

FIRST, SECOND, TIE = 0, 1, 2
# Reason of leaving a vote out -> what it means.
REASONS: dict[str, str] = {
    "exported": "were exported for training",
    "not held out": "are on prompts, or by voters, that are not held out from training",
    "catch": "are on catch pairs",
    "one player": "compare a player with itself",
    "unsaid": "do not say which is better",
    "both bad": "call both sides bad and none better",
}


@dataclass(frozen=True)
class Comparisons:
    """n comparisons of ``players[first]`` with ``players[second]``, every array of length n.

    ``outcome``: 0 first won, 1 second won, 2 tie. ``user``: index of the voter among ``users`` voters. ``left``: +1
    where first stood left, -1 where it stood right, 0 where there is no left and right (rankings). ``tie_offered``:
    False for pairs out of a ranking, where no tie could be said. ``vote``: number of the vote it comes from, ascending.
    ``covariates``: name -> first minus second. ``left_out``: reason -> number of votes. ``rankings``: number of
    rankings that were decomposed.
    """

    players: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    outcome: NDArray[np.int64]
    user: NDArray[np.int64]
    users: int
    left: NDArray[np.int64]
    tie_offered: NDArray[np.bool_]
    vote: NDArray[np.int64]
    covariates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    rankings: int = 0

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of_arrays(
        cls,
        players: Sequence[str],
        first: NDArray,
        second: NDArray,
        outcome: NDArray,
        *,
        user: NDArray | None = None,
        left: NDArray | None = None,
        covariates: Mapping[str, NDArray] | None = None,
    ) -> "Comparisons":
        """Comparisons of pairs from arrays. Without ``user`` every comparison is a voter of its own."""
        n = len(first)
        integers = {"first": first, "second": second, "outcome": outcome}
        integers |= {"user": np.arange(n) if user is None else user, "left": np.zeros(n) if left is None else left}
        arrays = {name: np.ascontiguousarray(array, dtype=np.int64) for name, array in integers.items()}
        floats = {name: np.ascontiguousarray(x, dtype=np.float64) for name, x in (covariates or {}).items()}
        _check(tuple(players), arrays, floats, n)
        numbered, users = _numbered(arrays["user"])
        return cls(
            players=tuple(players),
            first=arrays["first"],
            second=arrays["second"],
            outcome=arrays["outcome"],
            user=numbered,
            users=users,
            left=arrays["left"],
            tie_offered=np.ones(n, dtype=bool),
            vote=np.arange(n),
            covariates=floats,
        )


def comparisons_of(
    votes: Iterable[Vote],
    *,
    style: Mapping[str, Mapping[str, float]] | None = None,
    exported: bool = False,
    hold_out: HoldOut | None = None,
) -> Comparisons:
    """The comparisons in ``votes``.

    A ranking of k becomes its k(k-1)/2 pairs ("full breaking", which estimates Plackett-Luce strengths consistently;
    the pairs of a vote are not independent, so errors are clustered by voter). Votes on catch pairs, of one player with
    itself, without a relative judgement, and ties that call every side bad are left out and counted; so are exported
    ones unless ``exported``, and with ``hold_out`` those that it does not hold. ``style``: ``Side.shows`` -> its
    measures (see ``measure_style``), all with one set of names; they become covariates. Raises ValueError for a side
    that ``style`` lacks.
    """
    names = tuple(next(iter(style.values()))) if style else ()
    players: dict[str, int] = {}
    voters: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    measures: list[tuple[float, ...]] = []
    left_out: Counter[str] = Counter()
    rankings = 0
    for number, vote in enumerate(votes):
        sides = vote.battle.shown
        ids = [players.setdefault(side.player, len(players)) for side in sides]
        reason = why_left_out(vote, exported)
        if reason is None and hold_out is not None and not hold_out.holds(vote):
            reason = "not held out"
        if reason is not None:
            left_out[reason] += 1
            continue
        voter, pair = voters.setdefault(vote.voter, len(voters)), vote.ballot.ranking is None
        rankings += not pair
        for first, second, outcome in _pairs(vote):
            if ids[first] != ids[second]:
                rows.append((ids[first], ids[second], outcome, voter, pair, number))
                if style:
                    measures.append(_difference(style, names, sides[first].shows, sides[second].shows))
    table = np.array(measures, dtype=np.float64).reshape(len(measures), len(names))
    covariates = {name: table[:, place].copy() for place, name in enumerate(names)}
    return _assembled(players, rows, len(voters), covariates, left_out, rankings)


def met(data: Comparisons) -> tuple[Comparisons, tuple[str, ...]]:
    """``data`` without the players that no comparison is about, and their names."""
    m = len(data.players)
    seen = np.bincount(data.first, minlength=m) + np.bincount(data.second, minlength=m) > 0
    if seen.all():
        return data, ()
    renumber = np.cumsum(seen) - 1
    players = tuple(name for name, there in zip(data.players, seen, strict=True) if there)
    idle = tuple(name for name, there in zip(data.players, seen, strict=True) if not there)
    return replace(data, players=players, first=renumber[data.first], second=renumber[data.second]), idle


def _assembled(
    players: Mapping[str, int],
    rows: Sequence[tuple[int, ...]],
    voters: int,
    covariates: Mapping[str, NDArray[np.float64]],
    left_out: Mapping[str, int],
    rankings: int,
) -> Comparisons:
    """Rows of (first, second, outcome, voter, is a pair, vote) as arrays, players in the order of their names."""
    columns = np.array(rows, dtype=np.int64).reshape(len(rows), 6).T
    order = sorted(players)
    renumber = np.empty(len(players), dtype=np.int64)
    renumber[[players[name] for name in order]] = np.arange(len(players))
    return Comparisons(
        players=tuple(order),
        first=renumber[columns[0]],
        second=renumber[columns[1]],
        outcome=columns[2].copy(),
        user=columns[3].copy(),
        users=voters,
        left=columns[4].copy(),
        tie_offered=columns[4].astype(bool),
        vote=columns[5].copy(),
        covariates=covariates,
        left_out=dict(left_out),
        rankings=rankings,
    )


def why_left_out(vote: Vote, exported: bool = False) -> str | None:
    """The reason (a key of ``REASONS``) for which ``vote`` compares no players; None where it does."""
    if vote.exported and not exported:
        return "exported"
    if vote.battle.catch is not None:
        return "catch"
    if len({side.player for side in vote.battle.sides}) == 1:
        return "one player"
    ballot = vote.ballot
    if ballot.both_bad and ballot.better in (None, "tie") and ballot.ranking is None:
        return "both bad"
    return "unsaid" if ballot.better is None and ballot.ranking is None else None


def _pairs(vote: Vote) -> list[tuple[int, int, int]]:
    """(first position, second position, outcome); in a ranking the better one comes first."""
    ballot = vote.ballot
    if ballot.ranking is not None:
        return [(better, worse, FIRST) for better, worse in combinations(ballot.ranking, 2)]
    return [(0, 1, {"left": FIRST, "right": SECOND, "tie": TIE}[str(ballot.better)])]


def _numbered(user: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Voters numbered without gaps, and how many there are."""
    if len(user) and user.max() < 4 * len(user):  # a table instead of a sort
        there = np.bincount(user) > 0
        return (np.cumsum(there) - 1)[user], int(there.sum())
    distinct, numbered = np.unique(user, return_inverse=True)
    return numbered, len(distinct)


def _difference(
    style: Mapping[str, Mapping[str, float]], names: tuple[str, ...], first: str, second: str
) -> tuple[float, ...]:
    for side in (first, second):
        if side not in style or tuple(style[side]) != names:
            raise ValueError(f"style has no measures {', '.join(names)} of the side that shows {side}; measure all")
    return tuple(style[first][name] - style[second][name] for name in names)


def _check(players: tuple[str, ...], arrays: Mapping[str, NDArray], floats: Mapping[str, NDArray], n: int) -> None:
    bounds = {"first": (0, len(players) - 1), "second": (0, len(players) - 1), "outcome": (0, 2), "left": (-1, 1)}
    for name, array in (*arrays.items(), *floats.items()):
        if array.shape != (n,):
            raise ValueError(f"{name} has shape {array.shape}; it needs one entry for each of {n} comparisons")
        low, high = bounds.get(name, (0 if name == "user" else -np.inf, np.inf))
        if n and not (np.isfinite(array).all() and low <= array.min() and array.max() <= high):
            raise ValueError(f"{name} has values outside {low:g} to {high:g}")
    if (arrays["first"] == arrays["second"]).any():
        raise ValueError("first and second are the same player in some comparison")
    if len(set(players)) != len(players):
        raise ValueError("players repeat")
