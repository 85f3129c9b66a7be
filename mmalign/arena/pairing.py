"""Which two models meet next: where the votes are least sure, with a floor for every pair and a logged propensity."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.checks import check_integer, check_number
from mmalign.arena.comparisons import Comparisons
from mmalign.arena.davidson import RIDGE, design_of, fit
from mmalign.arena.types import Battle, Side, Vote


@dataclass(frozen=True)
class Choice:
    """A drawn pair. ``propensity``: the probability it had; ``seed`` repeats the draw and orders the sides."""

    first: str
    second: str
    propensity: float
    policy: str
    seed: int

    def battle(self, first: Side, second: Side) -> Battle:
        """The battle of these two sides, with policy, propensity and seed; the seed draws left and right.

        Raises ValueError where the sides are not of the two players that were drawn.
        """
        if (first.player, second.player) != (self.first, self.second):
            drawn, given = f"{self.first}, {self.second}", f"{first.player}, {second.player}"
            raise ValueError(f"the players {drawn} were drawn, and the sides are of {given}")
        return Battle((first, second), seed=self.seed, policy=self.policy, propensity=self.propensity)


@dataclass(frozen=True)
class Pairing:
    """Probabilities of all pairs of ``players``: ``floor`` spread evenly, the rest by how much a vote would tell.

    A vote on (i, j) has information p(1 - p) about their difference d, whose variance so far is v (from the inverse
    Hessian with the ridge as a prior); the log-determinant of what is known grows by log(1 + p(1 - p) v), which is the
    weight of the pair. Without votes all pairs are alike. Bradley-Terry fits stay consistent under such a choice,
    because it depends on earlier votes only; ``propensity`` is kept with every battle for estimates that need it.
    """

    players: tuple[str, ...]
    floor: float = 0.2
    pairs: tuple[tuple[int, int], ...] = field(init=False, repr=False)
    shares: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_players(self.players, self.floor)
        pairs = tuple(combinations(range(len(self.players)), 2))
        object.__setattr__(self, "pairs", pairs)
        object.__setattr__(self, "shares", np.full(len(pairs), 1 / len(pairs)))

    @classmethod
    def of_votes(
        cls, players: Sequence[str], data: Comparisons, *, floor: float = 0.2, ridge: float = RIDGE
    ) -> "Pairing":
        """The pairing of ``players`` after the votes in ``data``; players of it that are not asked for do not meet."""
        pairing = cls(tuple(players), floor)
        if not len(data):
            return pairing
        design = design_of(data, position=False)
        found = fit(design, design.counts(data), ridge=ridge)
        known = {name: place for place, name in enumerate(data.players)}
        strength = np.array([found.parameters[known[name]] if name in known else 0.0 for name in players])
        # A player without votes: the prior's variance, and nothing in common with the others.
        covariance = np.eye(len(players)) / ridge
        inverse = np.linalg.inv(found.information)
        there = [place for place, name in enumerate(players) if name in known]
        index = [known[players[place]] for place in there]
        covariance[np.ix_(there, there)] = inverse[np.ix_(index, index)]
        i, j = np.array(pairing.pairs).T
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        p = 1 / (1 + np.exp(-np.clip(strength[i] - strength[j], -50, 50)))
        weight = np.log1p(p * (1 - p) * variance)
        shares = floor / len(weight) + (1 - floor) * weight / weight.sum()
        object.__setattr__(pairing, "shares", shares / shares.sum())
        return pairing

    def draw(self, seed: int) -> Choice:
        """One pair, drawn by ``seed`` alone."""
        check_integer("seed", seed, low=0)
        place = int(np.random.default_rng(seed).choice(len(self.pairs), p=self.shares))
        first, second = self.pairs[place]
        policy = f"adaptive floor={self.floor:g}"
        return Choice(self.players[first], self.players[second], float(self.shares[place]), policy, seed)


def repeat_of(votes: Sequence[Vote], *, seed: int, gap: int = 5) -> Battle | None:
    """A catch battle that shows one of a voter's earlier battles again with its sides exchanged.

    ``votes``: those of one voter, in order. At least ``gap`` of their votes lie between; a battle is repeated once.
    None where there is none to repeat.
    """
    done = {vote.battle.catch_of for vote in votes}
    fit_to_repeat = [
        vote.battle
        for vote in votes[: max(0, len(votes) - gap)]
        if vote.battle.catch is None and vote.battle.form == "pair" and vote.battle.id not in done
    ]
    if not fit_to_repeat:
        return None
    battle = fit_to_repeat[int(np.random.default_rng(seed).integers(len(fit_to_repeat)))]
    return Battle(battle.sides, seed=seed, order=battle.order[::-1], policy="catch", catch="repeat", catch_of=battle.id)


def identical_of(side: Side, *, seed: int) -> Battle:
    """A catch battle of one picture with itself: whoever prefers a side does not look."""
    return Battle((side, side), seed=seed, policy="catch", catch="identical")


def _check_players(players: tuple[str, ...], floor: float) -> None:
    if len(players) < 2 or len(set(players)) != len(players):
        raise ValueError(f"players={list(players)} must be at least two different names")
    check_number("floor", floor, low=0, high=1)
    if floor == 0:
        raise ValueError("floor=0 would never show some pairs again; give a little, such as 0.1")
