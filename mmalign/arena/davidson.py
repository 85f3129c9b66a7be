"""Bradley-Terry strengths with ties (Davidson 1970) by penalised Newton steps on counts.

d = strength_i - strength_j + position * left + coefficients . covariates, and

    P(i wins) : P(j wins) : P(tie)  =  e^(d/2) : e^(-d/2) : nu        (no tie offered: nu = 0, Bradley-Terry)

The log-likelihood is concave in strengths, log nu and coefficients. A penalty of ``ridge / 2`` times the squared norm
keeps it strictly so, therefore a model that won everything gets a finite strength.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.comparisons import FIRST, SECOND, TIE, Comparisons

RIDGE = 0.1  # a normal prior of standard deviation 3.2 logits on every parameter
_MOST_STEPS = 100
_ENOUGH = 1e-9  # largest change of a parameter, in logits


@dataclass(frozen=True)
class Design:
    """Distinct cells (first, second, what multiplies the effects, tie offered) and the cell of every comparison.

    ``effects`` [cells, e] holds, in this order, ``left`` where ``names`` starts with "position", then the standardised
    covariates. ``with_ties``: log nu is a parameter. Parameters: strengths [m], log nu (if so), effects [e].
    """

    players: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    effects: NDArray[np.float64]
    tie_offered: NDArray[np.bool_]
    cell: NDArray[np.int64]
    names: tuple[str, ...]
    scales: tuple[float, ...]
    with_ties: bool

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.players + int(self.with_ties) + len(self.names)

    def counts(self, data: Comparisons, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """[cells, 3]: weighted number of wins of first, of second, and ties."""
        cells = len(self.first)
        return np.bincount(self.cell * 3 + data.outcome, weights, minlength=3 * cells).reshape(cells, 3).astype(float)


@dataclass(frozen=True)
class Fit:
    """``parameters`` [p] at the maximum and ``information`` [p, p], minus the Hessian there (with the ridge)."""

    parameters: NDArray[np.float64]
    information: NDArray[np.float64]
    steps: int


def design_of(data: Comparisons, *, position: bool) -> Design:
    """Comparisons that look alike share a cell: without covariates there are at most about 2 m^2 of them."""
    effects = {"position": data.left.astype(float)} if position else {}
    scales = dict.fromkeys(effects, 1.0)
    for name, values in data.covariates.items():
        scales[name] = (
            float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
        )  # the difference has no sign of its own
        if scales[name] > 0:
            effects[name] = values / scales[name]
    names = tuple(effects)
    m = len(data.players)
    if data.covariates and set(names) - {"position"}:
        cell, kept = np.arange(len(data)), np.arange(len(data))
    else:
        key = ((data.first * m + data.second) * 3 + data.left + 1) * 2 + data.tie_offered
        if not position:
            key = (data.first * m + data.second) * 2 + data.tie_offered
        cell, kept = _cells(key, m)
    table = np.stack([effects[name][kept] for name in names], 1) if names else np.zeros((len(kept), 0))
    return Design(
        players=m,
        first=data.first[kept],
        second=data.second[kept],
        effects=table,
        tie_offered=data.tie_offered[kept],
        cell=cell,
        names=names,
        scales=tuple(scales[name] for name in names),
        with_ties=bool((data.outcome == TIE).any()),
    )


def _cells(key: NDArray[np.int64], m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(cell of each comparison, one comparison of each cell); keys are small, so nothing is sorted."""
    if m > 1000:
        _, kept, cell = np.unique(key, return_index=True, return_inverse=True)
        return cell, kept
    example = np.full(6 * m * m, -1, dtype=np.int64)
    example[key] = np.arange(len(key))
    used = np.flatnonzero(example >= 0)
    place = np.zeros(len(example), dtype=np.int64)
    place[used] = np.arange(len(used))
    return place[key], example[used]


def fit(design: Design, counts: NDArray[np.float64], *, ridge: float = RIDGE, start: NDArray | None = None) -> Fit:
    """The penalised maximum. Raises RuntimeError where Newton's method does not arrive."""
    parameters = np.zeros(design.size) if start is None else start.copy()
    value, gradient, information = _derivatives(design, counts, parameters, ridge)
    for step in range(_MOST_STEPS):
        move: NDArray[np.float64] = np.linalg.solve(information, gradient).astype(np.float64)
        shrink = 1.0
        while True:
            trial = parameters + shrink * move
            new = _derivatives(design, counts, trial, ridge)
            if new[0] >= value - 1e-12 * abs(value):
                break
            shrink /= 2
            if shrink < 1e-10:
                raise RuntimeError("Newton's method found no better point; are the weights finite and positive?")
        parameters, (value, gradient, information) = trial, new
        if np.abs(move).max(initial=0) * shrink < _ENOUGH:
            return Fit(parameters, information, step + 1)
    raise RuntimeError(f"Newton's method did not converge in {_MOST_STEPS} steps")


def probabilities(design: Design, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """[cells, 3]: P(first wins), P(second wins), P(tie)."""
    m, t = design.players, int(design.with_ties)
    d = parameters[design.first] - parameters[design.second] + design.effects @ parameters[m + t :]
    tie = np.where(design.tie_offered, parameters[m], -np.inf) if t else np.full(len(d), -np.inf)
    logits = np.stack([d / 2, -d / 2, tie], axis=1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def slopes(p: NDArray[np.float64], outcome: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """d log-likelihood / d d and / d log nu of one comparison with that outcome, for every cell."""
    sign = {FIRST: 0.5, SECOND: -0.5, TIE: 0.0}[outcome]
    return sign - (p[:, FIRST] - p[:, SECOND]) / 2, float(outcome == TIE) - p[:, TIE]


def _derivatives(
    design: Design, counts: NDArray[np.float64], parameters: NDArray[np.float64], ridge: float
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Penalised log-likelihood, its gradient [p], and minus its Hessian [p, p]."""
    m, t = design.players, int(design.with_ties)
    p, n = probabilities(design, parameters), counts.sum(1)
    seen = counts > 0
    value = float((counts[seen] * np.log(np.maximum(p[seen], 1e-300))).sum()) - ridge / 2 * float(
        parameters @ parameters
    )
    edge = p[:, FIRST] - p[:, SECOND]
    by_d = (counts[:, FIRST] - counts[:, SECOND] - n * edge) / 2
    gradient = -ridge * parameters
    gradient[:m] += np.bincount(design.first, by_d, m) - np.bincount(design.second, by_d, m)
    gradient[m + t :] += design.effects.T @ by_d

    # Minus second derivatives in (d, d), (d, log nu) and (log nu, log nu).
    dd = n / 4 * (p[:, FIRST] + p[:, SECOND] - edge**2)
    information = ridge * np.eye(design.size)
    pairs = np.bincount(design.first * m + design.second, dd, m * m).reshape(m, m)
    pairs += pairs.T
    information[:m, :m] += np.diag(pairs.sum(1)) - pairs
    columns = [design.effects[:, place] for place in range(len(design.names))]
    mixed = [dd * column for column in columns]
    places = [m + t + place for place in range(len(columns))]
    information[m + t :, m + t :] += design.effects.T @ (dd[:, None] * design.effects)
    if t:
        gradient[m] += counts[:, TIE].sum() - (n * p[:, TIE]).sum()
        dt = -n * edge / 2 * p[:, TIE]
        information[m, m] += (n * p[:, TIE] * (1 - p[:, TIE])).sum()
        cross = design.effects.T @ dt
        information[m, m + t :] += cross
        information[m + t :, m] += cross
        mixed, places = [*mixed, dt], [*places, m]
    for place, column in zip(places, mixed, strict=True):
        cross = np.bincount(design.first, column, m) - np.bincount(design.second, column, m)
        information[:m, place] += cross
        information[place, :m] += cross
    return value, gradient, information
