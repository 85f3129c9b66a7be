"""Rewards of different scales on one scale, and several rewards as one number: pure functions and their frozen state.

Raw scores cannot be added: what a weight means depends on each reward's spread. Each transform here makes scores of
one reward comparable; each aggregate makes one number of several.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
MIN_SPREAD = 1e-12


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of what was seen; merged without loss (Chan, Golub & LeVeque 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def merged(self, values: ArrayLike) -> Self:
        """With more values."""
        new = np.asarray(values, dtype=np.float64)
        if not new.size:
            return self
        total, apart = self.count + new.size, float(new.mean()) - self.mean
        squares = self.squares + float(((new - new.mean()) ** 2).sum()) + apart**2 * self.count * new.size / total
        return replace(self, count=total, mean=self.mean + apart * new.size / total, squares=squares)

    @property
    def std(self) -> float:
        """Sample standard deviation, n - 1 below; 0 for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def standardised(self, values: ArrayLike) -> Array:
        """z = (r - mean) / std; 0 where nothing has varied so far."""
        centred = np.asarray(values, dtype=np.float64) - self.mean
        return centred / self.std if self.std > MIN_SPREAD else np.zeros_like(centred)


def per_prompt_z(scores: ArrayLike, prompts: Sequence[str]) -> Array:
    """z = (r - mean) / std over the pictures of the same prompt in this batch; 0 where they all score alike.

    ValueError for a prompt with one picture: its z would always be 0, whatever the picture.
    """
    values = np.asarray(scores, dtype=np.float64)
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    result = np.zeros_like(values)
    for prompt, members in places.items():
        if len(members) < 2:
            raise ValueError(
                f"the prompt {prompt!r} has one picture in this batch; a z-score per prompt needs two or more: score "
                "pictures of a prompt together, or use another transform"
            )
        result[members] = Moments().merged(values[members]).standardised(values[members])
    return result


def quantile(scores: ArrayLike, reference: ArrayLike) -> Array:
    """Mid-rank ECDF, (#{x < r} + #{x = r} / 2) / n over the sorted ``reference``: uniform on [0, 1] for its like."""
    values, sorted_reference = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    below = np.searchsorted(sorted_reference, values, side="left")
    up_to = np.searchsorted(sorted_reference, values, side="right")
    return (below + up_to) / (2 * len(sorted_reference))


def log_sigmoid_centred(scores: ArrayLike, baselines: ArrayLike) -> Array:
    """u = log sigma(r - r_ref(prompt)), at most 0, whose *sum* over rewards means "good on all properties".

    Wang et al., Transforming and Combining Rewards for Aligning Large Language Models, ICML 2024 (PMLR 235:51161).
    ``baselines``: r_ref, a quantile of the base model's scores for the prompt.
    """
    gaps = np.asarray(scores, dtype=np.float64) - np.asarray(baselines, dtype=np.float64)
    return -np.logaddexp(0, -gaps)


def weighted_sum(columns: Array, weights: ArrayLike) -> Array:
    """sum_k w_k u_k of columns [rewards, batch]."""
    return np.asarray(weights, dtype=np.float64) @ columns


def weighted_mean(columns: Array, weights: ArrayLike) -> Array:
    """sum_k w_k u_k / sum_k w_k."""
    of = np.asarray(weights, dtype=np.float64)
    return of @ columns / of.sum()


def worst_case(columns: Array) -> Array:
    """min_k u_k (worst-case optimisation, Coste et al. 2023, arXiv 2310.02743)."""
    return columns.min(axis=0)


def lower_confidence(columns: Array, weights: ArrayLike, *, kappa: float) -> Array:
    """weighted mean - kappa * weighted standard deviation over the rewards: where they disagree, less.

    ``kappa`` in standard deviations; 0 is the mean. Coste et al. subtract the variance instead.
    """
    mean, of = weighted_mean(columns, weights), np.asarray(weights, dtype=np.float64)
    return mean - kappa * np.sqrt(of @ (columns - mean) ** 2 / of.sum())


def win_probability(columns: Array) -> Array:
    """psi_i = mean over rewards and j != i of [r_i > r_j] + [r_i = r_j] / 2, of columns [rewards, k]: shape [k].

    Syn-Pic's aggregate of several reward models (RankDPO, arXiv 2410.18013): scales do not matter, only orders.
    """
    k = columns.shape[1]
    wins = (np.sign(columns[:, :, None] - columns[:, None, :]) + 1) / 2
    return (wins.sum(axis=2) - 0.5).mean(axis=0) / (k - 1)


def multiplier_step(multiplier: float, mean_score: float, at_least: float, rate: float) -> float:
    """lambda <- max(0, lambda + rate (bound - mean score)): grows while the constraint mean score >= bound is violated.

    Projected dual ascent, as in constrained RLHF (Moskovitz et al. 2023, arXiv 2310.04373).
    """
    return max(0.0, multiplier + rate * (at_least - mean_score))


def baselines_of(prompts: Sequence[str], scores: ArrayLike, level: float) -> Mapping[str, float]:
    """Prompt -> the ``level`` quantile of its pictures' scores."""
    grouped: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, np.asarray(scores, dtype=np.float64), strict=True):
        grouped.setdefault(prompt, []).append(float(score))
    return {prompt: float(np.quantile(values, level)) for prompt, values in grouped.items()}
