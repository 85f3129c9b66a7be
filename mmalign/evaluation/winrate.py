"""How often the aligned model beats the base, and by how much, with intervals that resample *prompts*.

Pictures of one prompt are not independent of each other, so the prompt is the unit that is resampled: a cluster
bootstrap. Base and aligned share prompts and seeds, so every comparison is paired, which removes most of the noise.
Numbers depend on such rules as much as on models; the results therefore carry their rules with them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / comparisons, its 95 % interval, and the counts behind it (prompts x seeds comparisons)."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    n_prompts: int

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class MeanDifference:
    """Mean of the base, mean of the aligned model, and aligned - base, each with a 95 % interval."""

    base: Estimate
    aligned: Estimate
    difference: Estimate
    n_prompts: int


def paired_win_rate(
    base_scores: ArrayLike, aligned_scores: ArrayLike, *, bootstrap: int = 2000, seed: int = 0
) -> WinRate:
    """(wins + ties / 2) / comparisons of aligned against base, both [prompts, seeds], same prompt and seed per cell.

    A tie is an exactly equal score and counts one half, so a model compared with itself gets 0.5. The interval is the
    95 % percentile bootstrap over prompts; the same ``seed`` gives the same interval. With no variation between
    prompts (all wins, say) resampling shows none, and the interval has width zero.
    """
    base, aligned = _paired(base_scores, aligned_scores)
    outcome = (np.sign(aligned - base) + 1) / 2
    low, high = interval(resampled_means(outcome.mean(axis=1), bootstrap=bootstrap, seed=seed))
    wins, losses = int((outcome == 1).sum()), int((outcome == 0).sum())
    ties = outcome.size - wins - losses
    return WinRate(float(outcome.mean()), low, high, wins, ties, losses, n_prompts=len(outcome))


def mean_difference(base: ArrayLike, aligned: ArrayLike, *, bootstrap: int = 2000, seed: int = 0) -> MeanDifference:
    """Means of base and aligned values, both [prompts, seeds], and aligned - base, with 95 % prompt intervals.

    Values may be scores or 0/1 outcomes. The same prompts are drawn for both sides, so the difference is paired.
    """
    base, aligned = _paired(base, aligned)
    base_means, aligned_means = base.mean(axis=1), aligned.mean(axis=1)
    columns = np.stack([base_means, aligned_means, aligned_means - base_means], axis=1)
    resampled = resampled_means(columns, bootstrap=bootstrap, seed=seed)
    estimates = [
        Estimate(float(mean), *interval(draws)) for mean, draws in zip(columns.mean(0), resampled.T, strict=True)
    ]
    return MeanDifference(*estimates, n_prompts=len(base))


def prompt_draws(n_prompts: int, *, bootstrap: int, seed: int) -> NDArray[np.float64]:
    """[bootstrap, prompts]: how often each prompt is drawn in each resample of ``n_prompts`` prompts."""
    if n_prompts < 2:
        raise ValueError(f"an interval over prompts needs at least 2 prompts, got {n_prompts}: give more prompts")
    if bootstrap < 100:
        raise ValueError(f"bootstrap must be at least 100 resamples, got {bootstrap}; 2000 is the usual number")
    shares = np.full(n_prompts, 1 / n_prompts)
    return np.random.default_rng(seed).multinomial(n_prompts, shares, size=bootstrap).astype(np.float64)


def resampled_means(values: NDArray[np.float64], *, bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Means of ``values`` [prompts] or [prompts, k] over each resample of prompts: [bootstrap] or [bootstrap, k]."""
    return prompt_draws(len(values), bootstrap=bootstrap, seed=seed) @ values / len(values)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _paired(base: ArrayLike, aligned: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    base, aligned = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    if base.ndim != 2 or base.shape != aligned.shape or base.size == 0:
        raise ValueError(
            f"base and aligned must both be [prompts, seeds] over the same prompts and seeds, "
            f"got shapes {list(base.shape)} and {list(aligned.shape)}"
        )
    for side, values in (("base", base), ("aligned", aligned)):
        if not np.isfinite(values).all():
            prompt, seed = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"{side} value of prompt {prompt}, seed {seed} is {values[prompt, seed]}; all must be finite"
            )
    return base, aligned
