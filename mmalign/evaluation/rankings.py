"""How well a reward model orders k pictures of one prompt: Kendall's tau-b, NDCG, and what picking the best of n gains.

Labels are the gold here: people's, or those of another reward model, never the selector's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

from mmalign.evaluation.judged import Array, Clusters, Judged, signs
from mmalign.evaluation.winrate import Estimate, interval


@dataclass(frozen=True)
class BestOf:
    """Expected label of the picture with the highest score among n random ones, over groups with at least n pictures.

    ``best``: of the picture with the highest label, what a perfect reward gives. ``random``: of any picture.
    ``regret`` = best - picked. ``captured`` = (picked - random) / (best - random): 1 for a perfect reward, 0 for a
    useless one, below 0 for a harmful one; None where the labels are all tied.
    """

    n: int
    n_groups: int
    picked: Estimate
    best: float
    random: float
    regret: float
    captured: float | None


@dataclass(frozen=True)
class RankingMetrics:
    """Means over groups with 95 % intervals over prompts. ``n_tau``, ``n_ndcg``: groups where each is defined."""

    n_groups: int
    tau_b: Estimate | None
    n_tau: int
    ndcg: Estimate | None
    n_ndcg: int
    best_of: list[BestOf]


def kendall_tau_b(labels: Sequence[float], scores: Sequence[float]) -> float | None:
    """(concordant - discordant) / sqrt((P - ties of labels)(P - ties of scores)), P = k (k - 1) / 2 pairs.

    None where all labels or all scores are tied, where it is not defined (Kendall 1945).
    """
    human, model = signs(labels), signs(scores)
    below = sqrt(float((human != 0).sum()) * float((model != 0).sum()))
    return float((human * model).sum()) / below if below else None


def ndcg(labels: Sequence[float], scores: Sequence[float]) -> float | None:
    """DCG of the order by score / DCG of the order by label; gain = label - smallest label, discount log2(1 + place).

    Pictures with equal scores share the mean gain of their places, the expectation over their orders (McSherry &
    Najork 2008). None where all labels are equal.
    """
    gains = np.asarray(labels, dtype=np.float64)
    gains = gains - gains.min()
    ideal = _dcg(gains, gains)
    return _dcg(gains, np.asarray(scores, dtype=np.float64)) / ideal if ideal else None


def expected_best_of(values: Sequence[float], scores: Sequence[float], n: int) -> float:
    """E[value of the best-scored of n pictures drawn without replacement from the k there are], without bias.

    sum_i C(i - 1, n - 1) / C(k, n) v_(i), v_(i) the value of the picture with the i-th smallest score; equal scores
    share the mean value, the expectation over their orders.
    """
    if not 1 <= n <= len(values):
        raise ValueError(f"n={n}: the best of n is drawn from {len(values)} pictures, so n lies between 1 and that")
    value, k = _tied_means(np.asarray(values, dtype=np.float64), np.asarray(scores, dtype=np.float64)), len(values)
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    weights = np.array([comb(place, n - 1) for place in range(k)], dtype=np.float64) / comb(k, n)
    return float(weights @ value[order])


def ranking_metrics(groups: Sequence[Judged], *, bootstrap: int = 2000, seed: int = 0) -> RankingMetrics:
    """All of them, over ``groups``; ``best_of`` for n = 1, 2, ..., largest group."""
    if not groups:
        raise ValueError("there are no judged groups to rank")
    clusters = Clusters([group.prompt for group in groups], bootstrap=bootstrap, seed=seed)
    taus = [kendall_tau_b(group.labels, group.scores) for group in groups]
    gains = [ndcg(group.labels, group.scores) for group in groups]
    largest = max(len(group.labels) for group in groups)
    return RankingMetrics(
        n_groups=len(groups),
        tau_b=_mean(clusters, taus),
        n_tau=sum(tau is not None for tau in taus),
        ndcg=_mean(clusters, gains),
        n_ndcg=sum(gain is not None for gain in gains),
        best_of=[_best_of(groups, clusters, n) for n in range(1, largest + 1)],
    )


def _best_of(groups: Sequence[Judged], clusters: Clusters, n: int) -> BestOf:
    usable = [group if len(group.labels) >= n else None for group in groups]
    picked = [None if group is None else expected_best_of(group.labels, group.scores, n) for group in usable]
    best = [expected_best_of(group.labels, group.labels, n) for group in usable if group is not None]
    plain = [float(np.mean(group.labels)) for group in usable if group is not None]
    estimate = _mean(clusters, picked)
    assert estimate is not None
    top, base = float(np.mean(best)), float(np.mean(plain))
    captured = (estimate.value - base) / (top - base) if top > base else None
    return BestOf(n, len(best), estimate, top, base, top - estimate.value, captured)


def _mean(clusters: Clusters, values: Sequence[float | None]) -> Estimate | None:
    """Mean of what is there; the interval is the value itself where one prompt is all there is."""
    there = np.array([value is not None for value in values], dtype=np.float64)
    if not there.any():
        return None
    filled = np.array([0.0 if value is None else value for value in values])
    value, draws = float(filled.sum() / there.sum()), clusters.draws_of_ratio(filled, there)
    return Estimate(value, *((value, value) if draws is None else interval(draws)))


def _dcg(gains: Array, scores: Array) -> float:
    order = np.argsort(-scores, kind="stable")
    return float((_tied_means(gains, scores)[order] / np.log2(np.arange(len(gains)) + 2)).sum())


def _tied_means(values: Array, scores: Array) -> Array:
    """Each value replaced by the mean of those with the same score."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.bincount(places, weights=values) / counts)[places]
