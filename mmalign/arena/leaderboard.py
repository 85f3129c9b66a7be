"""From votes to a board: fit, intervals, ranks, and the sentences that go with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.board import Board, Effect, IntervalKind, Standing
from mmalign.arena.checks import check_integer, check_number
from mmalign.arena.comparisons import Comparisons, comparisons_of, met
from mmalign.arena.davidson import RIDGE, Design, Fit, design_of, fit
from mmalign.arena.graph import components, strong_components, tables
from mmalign.arena.hold_out import HoldOut
from mmalign.arena.notes import notes_of
from mmalign.arena.types import Vote
from mmalign.arena.uncertainty import bootstrap, sandwich, t_quantile

ELO_PER_LOGIT = 400 / np.log(10)
_MANY = 10**6  # degrees of freedom at which Student's t is normal
_LEAST_INFORMATION = 1e-6  # share of an effect's information that other parameters do not take away


@dataclass(frozen=True)
class _Spread:
    """The law of the estimate: covariance with a t quantile, or draws; neither narrower than ``posterior`` says.

    ``posterior`` is the inverse information with the ridge as a prior. Where a model won everything, voters do not
    differ, and neither sandwich nor bootstrap sees that three wins out of three are little.
    """

    estimate: NDArray[np.float64]
    posterior: NDArray[np.float64]
    covariance: NDArray[np.float64]
    draws: NDArray[np.float64] | None
    level: float
    freedom: int

    def of(self, contrast: NDArray[np.float64]) -> tuple[float, float, float]:
        """Value, low and high of ``contrast`` times the parameters."""
        value = float(contrast @ self.estimate)
        tail = (1 - self.level) / 2
        least = float(contrast @ self.posterior @ contrast)
        if self.draws is not None:
            half = t_quantile(1 - tail, _MANY) * least**0.5
            low, high = np.quantile(self.draws @ contrast, [tail, 1 - tail])
            return value, min(float(low), value - half), max(float(high), value + half)
        half = t_quantile(1 - tail, self.freedom) * max(float(contrast @ self.covariance @ contrast), least) ** 0.5
        return value, value - half, value + half


def leaderboard(
    votes: Iterable[Vote] | Comparisons,
    *,
    style: Mapping[str, Mapping[str, float]] | None = None,
    position: bool = True,
    exported: bool = False,
    hold_out: HoldOut | None = None,
    ridge: float = RIDGE,
    interval: IntervalKind = "sandwich",
    level: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> Board:
    """Strengths of the players by Bradley-Terry with ties (Davidson), with intervals clustered by voter.

    ``style`` adds what ``measure_style`` measured as covariates, ``position`` the advantage of the left side; an effect
    that the votes cannot tell from the models is left out and noted. ``exported=True`` counts votes that were exported
    for training too, ``hold_out`` restricts the board to what it holds. ``interval``: "sandwich" (Student's t with
    voters - 1 degrees of freedom) or "bootstrap" (``draws`` refits to voters drawn with ``seed``, percentiles); neither
    is narrower than the fit's own curvature allows. Raises ValueError where no comparison is left.
    """
    check_number("ridge", ridge, low=1e-9)
    check_number("level", level, low=0.5, high=0.999)
    check_integer("draws", draws, low=20, high=100_000)
    if interval not in get_args(IntervalKind):
        raise ValueError(f"interval={interval!r} must be one of {', '.join(get_args(IntervalKind))}")
    if isinstance(votes, Comparisons):
        if style is not None or exported or hold_out is not None:
            raise ValueError("style, exported and hold_out belong to comparisons_of(votes, ...); pass them there")
        data = votes
    else:
        data = comparisons_of(votes, style=style, exported=exported, hold_out=hold_out)
    if not len(data):
        out = ", ".join(f"{number} {reason}" for reason, number in data.left_out.items()) or "there are no votes"
        raise ValueError(f"no vote compares two players ({out}); a board needs at least one")
    data, idle = met(data)
    design, found, dropped = _fit(data, position and bool((data.left != 0).any()), ridge)
    centring = _centring(data, design.size)
    posterior = centring @ np.linalg.inv(found.information) @ centring
    covariance = centring @ sandwich(design, data, found) @ centring
    refits = bootstrap(design, data, found, draws=draws, seed=seed, ridge=ridge) if interval == "bootstrap" else None
    freedom = data.users - 1 if data.users > 1 else _MANY
    spread = _Spread(found.parameters, posterior, covariance, refits, level, freedom)
    return _board(data, design, spread, (dropped, idle), interval, ridge)


def _centring(data: Comparisons, size: int) -> NDArray[np.float64]:
    """[p, p]: takes the mean of its component off every strength; only differences within one are known."""
    centring = np.eye(size)
    wins, ties = tables(data)
    for group in components(wins + ties):
        centring[np.ix_(group, group)] -= 1 / len(group)
    return centring


def _fit(data: Comparisons, position: bool, ridge: float) -> tuple[Design, Fit, tuple[str, ...]]:
    """The fit without effects that are confounded with the players, and the names of those."""
    design = design_of(data, position=position)
    found = fit(design, design.counts(data), ridge=ridge)
    dropped = _confounded(design, found, ridge)
    if not dropped:
        return design, found, ()
    kept = {name: values for name, values in data.covariates.items() if name not in dropped}
    design = design_of(replace(data, covariates=kept), position=position and "position" not in dropped)
    return design, fit(design, design.counts(data), ridge=ridge), dropped


def _confounded(design: Design, found: Fit, ridge: float) -> tuple[str, ...]:
    """Effects of which the other parameters leave no information: the ridge alone would decide about them."""
    plain = found.information - ridge * np.eye(design.size)
    names = []
    for place, name in enumerate(design.names):
        index = design.players + int(design.with_ties) + place
        others = np.delete(np.arange(design.size), index)
        cross = plain[others, index]
        left = plain[index, index] - cross @ np.linalg.pinv(plain[np.ix_(others, others)], hermitian=True) @ cross
        if left < _LEAST_INFORMATION * max(plain[index, index], 1e-12):
            names.append(name)
    return tuple(names)


def _board(
    data: Comparisons,
    design: Design,
    spread: _Spread,
    missing: tuple[tuple[str, ...], tuple[str, ...]],
    interval: IntervalKind,
    ridge: float,
) -> Board:
    wins, ties = tables(data)
    groups = components(wins + ties)
    estimates = [spread.of(row) for row in np.eye(design.size)]
    standings = _standings(data.players, estimates, wins, ties, groups)
    after = len(data.players) + int(design.with_ties)
    effects = [Effect(name, *estimates[after + place]) for place, name in enumerate(design.names)]
    nu = np.exp(spread.estimate[len(data.players)]) if design.with_ties else 0.0
    board = Board(
        standings=standings,
        players=data.players,
        wins=tuple(map(tuple, wins.tolist())),
        ties=tuple(map(tuple, ties.tolist())),
        components=tuple(tuple(data.players[player] for player in group) for group in groups),
        position=next((effect for effect in effects if effect.name == "position"), None),
        style=tuple(effect for effect in effects if effect.name != "position"),
        tie_probability=float(nu / (2 + nu)) if design.with_ties else None,
        top_two=_top_two(data.players, standings, spread, design.size),
        votes=int((np.diff(data.vote) != 0).sum()) + 1,
        comparisons=len(data),
        voters=data.users,
        left_out=dict(data.left_out),
        interval=interval,
        level=spread.level,
        ridge=ridge,
        notes=(),
    )
    strong = [tuple(data.players[player] for player in group) for group in strong_components(wins + ties)]
    return replace(board, notes=notes_of(board, strong, *missing, data.rankings))


def _standings(
    players: Sequence[str],
    estimates: Sequence[tuple[float, float, float]],
    wins: NDArray[np.int64],
    ties: NDArray[np.int64],
    groups: Sequence[tuple[int, ...]],
) -> tuple[Standing, ...]:
    standings = []
    for number, group in enumerate(groups):
        for player in sorted(group, key=lambda one: -estimates[one][0]):
            value, low, high = estimates[player]
            won, lost, tied = wins[player].sum(), wins[:, player].sum(), ties[player].sum()
            standings.append(
                Standing(
                    player=players[player],
                    rank=1 + sum(estimates[other][1] > high for other in group),
                    strength=value,
                    low=low,
                    high=high,
                    elo=float(1000 + ELO_PER_LOGIT * value),
                    comparisons=int(won + lost + tied),
                    wins=int(won),
                    losses=int(lost),
                    ties=int(tied),
                    component=number,
                )
            )
    return tuple(standings)


def _top_two(players: Sequence[str], standings: Sequence[Standing], spread: _Spread, size: int) -> Effect | None:
    """The difference of the two best of the first component; its interval knows how the two estimates hang together."""
    best = [standing for standing in standings if standing.component == 0][:2]
    if len(best) < 2:
        return None
    contrast = np.zeros(size)
    contrast[players.index(best[0].player)], contrast[players.index(best[1].player)] = 1, -1
    return Effect(f"{best[0].player} minus {best[1].player}", *spread.of(contrast))
