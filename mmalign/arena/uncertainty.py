"""How sure a fit is about people, not about clicks: clustered by voter, by sandwich or by bootstrap."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.comparisons import FIRST, SECOND, TIE, Comparisons
from mmalign.arena.davidson import Design, Fit, fit, probabilities, slopes

_CHUNK = 4_000_000  # numbers of a table of scores that is held at once


def sandwich(design: Design, data: Comparisons, found: Fit) -> NDArray[np.float64]:
    """Covariance [p, p] = H^-1 (G / (G - 1) sum over voters of s s^T) H^-1, where s sums a voter's scores.

    H is minus the Hessian with the ridge, G the number of voters (Liang and Zeger 1986; the factor is Stata's). Votes
    of one voter may depend on each other in any way. One voter alone tells nothing of others: then H^-1, as if all
    votes were independent.
    """
    inverse: NDArray[np.float64] = np.linalg.inv(found.information).astype(np.float64)
    if data.users < 2:
        return inverse
    meat = sum(table.T @ table for table in _voter_scores(design, data, found))
    return inverse @ (data.users / (data.users - 1) * meat) @ inverse


def bootstrap(
    design: Design, data: Comparisons, found: Fit, *, draws: int, seed: int, ridge: float
) -> NDArray[np.float64]:
    """Parameters [draws, p] of refits to voters drawn with replacement, each with all of their votes."""
    if data.users < 2:
        raise ValueError("a bootstrap over voters needs at least two voters; use interval='sandwich'")
    generator = np.random.default_rng(seed)
    refits = []
    for _ in range(draws):
        times = np.bincount(generator.integers(data.users, size=data.users), minlength=data.users).astype(float)
        refits.append(
            fit(design, design.counts(data, times[data.user]), ridge=ridge, start=found.parameters).parameters
        )
    return np.array(refits)


def comparison_slopes(design: Design, data: Comparisons, found: Fit) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes of every comparison's log-likelihood in d and in log nu, both [n]."""
    p = probabilities(design, found.parameters)
    tables = [slopes(p, outcome) for outcome in (FIRST, SECOND, TIE)]
    by_d, by_tie = (np.stack([table[place] for table in tables], 1).ravel() for place in (0, 1))
    place = design.cell * 3 + data.outcome
    return by_d[place], by_tie[place] * data.tie_offered


def _voter_scores(design: Design, data: Comparisons, found: Fit) -> Iterator[NDArray[np.float64]]:
    """Sums of scores [voters, p], some voters at a time."""
    by_d, by_tie = comparison_slopes(design, data, found)
    at_once = max(1, _CHUNK // design.size)
    if data.users <= at_once:
        yield _scores(design, data, slice(None), data.user, data.users, by_d, by_tie)
        return
    order = np.argsort(data.user, kind="stable")
    sorted_users = data.user[order]
    for start in range(0, data.users, at_once):
        low, high = np.searchsorted(sorted_users, (start, start + at_once))
        rows = order[low:high]
        number = min(at_once, data.users - start)
        yield _scores(design, data, rows, data.user[rows] - start, number, by_d[rows], by_tie[rows])


def _scores(
    design: Design,
    data: Comparisons,
    rows: slice | NDArray[np.int64],
    user: NDArray[np.int64],
    users: int,
    by_d: NDArray[np.float64],
    by_tie: NDArray[np.float64],
) -> NDArray[np.float64]:
    m, t = design.players, int(design.with_ties)
    table = np.zeros((users, design.size))
    for ids, sign in ((data.first[rows], 1.0), (data.second[rows], -1.0)):
        table[:, :m] += sign * np.bincount(user * m + ids, by_d, users * m).reshape(users, m)
    if t:
        table[:, m] = np.bincount(user, by_tie, users)
    cell = design.cell[rows]
    for place in range(len(design.names)):
        table[:, m + t + place] = np.bincount(user, by_d * design.effects[cell, place], users)
    return table


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t. With t = sqrt(freedom) tan(a), a has a density in proportion to cos(a)^(freedom - 1)."""
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    found = np.interp(abs(probability - 0.5) * 2 * mass[-1], mass, angle)
    return float(np.sign(probability - 0.5) * np.sqrt(freedom) * np.tan(found))
