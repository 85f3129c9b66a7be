"""Whether a reward difference says how sure one may be: p(a preferred to b) = sigma((s_a - s_b) / T).

Reward models are trained to say such a probability, yet their scores are used raw. T is fitted to people's choices;
soft labels and ties enter with their probability. DPO's label smoothing and the weights of votes need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.evaluation.judged import Array, Judged

BINS = 10
FOLDS = 5
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Bin:
    """Pairs whose favoured side has a probability in [low, high): its mean, how often it was right, how many pairs."""

    low: float
    high: float
    confidence: float
    accuracy: float
    pairs: int


@dataclass(frozen=True)
class Reliability:
    """At one temperature: ECE = sum_bins share |accuracy - confidence|, Brier = mean (p - y)^2, log-loss in nats.

    A pair with equal scores favours no side and is right half of the time.
    """

    temperature: float
    ece: float
    brier: float
    log_loss: float
    bins: list[Bin]


@dataclass(frozen=True)
class Calibration:
    """``as_given``: at T = 1 (or the one that was given). ``fitted``: at the temperature with the least log-loss, which
    saw the pairs it is measured on; ``held_out``: on prompts that its temperature did not see (5 folds), None below 5
    prompts. ``note``: why a temperature means nothing, where it does not."""

    pairs: int
    ties: int
    as_given: Reliability
    fitted: Reliability
    held_out: Reliability | None
    note: str | None


def calibration(groups: Sequence[Judged], *, temperature: float = 1.0, seed: int = 0) -> Calibration:
    """Reliability of all pairs of ``groups`` (i before j, so p is that of the first), and the temperature that fits."""
    if temperature <= 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature={temperature:g} must be a positive number")
    gaps, truth, owners = _pairs(groups)
    fitted, note = fit_temperature(gaps, truth)
    return Calibration(
        pairs=len(gaps),
        ties=int((truth == 0.5).sum()),
        as_given=reliability(gaps / temperature, truth, temperature),
        fitted=reliability(gaps / fitted, truth, fitted),
        held_out=_held_out(gaps, truth, owners, [group.prompt for group in groups], seed),
        note=note,
    )


def reliability(gaps: Array, truth: Array, temperature: float = 1.0) -> Reliability:
    """Of p = sigma(gap) for the first side, with ``truth`` = probability that it is preferred (0.5: a tie)."""
    p = _sigmoid(gaps)
    confidence, right = np.maximum(p, 1 - p), np.select([gaps > 0, gaps < 0], [truth, 1 - truth], 0.5)
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        if inside.any():
            edges = (0.5 + place / (2 * BINS), 0.5 + (place + 1) / (2 * BINS))
            bins.append(Bin(*edges, float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    error = sum(one.pairs * abs(one.accuracy - one.confidence) for one in bins) / len(gaps)
    return Reliability(temperature, error, float(((p - truth) ** 2).mean()), _log_loss(gaps, truth), bins)


def fit_temperature(gaps: Array, truth: Array) -> tuple[float, str | None]:
    """T > 0 that makes -mean(y log sigma(gap / T) + (1 - y) log sigma(-gap / T)) least, and a note where none does.

    The loss is convex in 1/T, so a golden-section search over log(1/T) finds its minimum. It lies at an end for a
    reward that is no better than chance (T grows without bound) or never wrong (T shrinks to 0).
    """
    spread = float(np.sqrt((gaps**2).mean()))
    if spread == 0:
        return 1.0, "all scores are tied: no temperature changes anything"
    wanted = gaps * (truth - 0.5)
    if wanted.mean() <= 0:  # minus the slope of the convex loss at 1/T = 0
        return 1e4 * spread, "no finite temperature: the reward is no better than chance on these pairs"
    apart = gaps != 0
    if ((wanted > 0) & (np.abs(truth - 0.5) == 0.5))[apart].all():
        return 1e-4 * spread, "no temperature above 0: the reward is never wrong on these pairs"
    low, high = math.log(1e-4 / spread), math.log(1e4 / spread)
    while high - low > 1e-7:
        inner = (high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        if _log_loss(gaps * math.exp(inner[0]), truth) <= _log_loss(gaps * math.exp(inner[1]), truth):
            high = inner[1]
        else:
            low = inner[0]
    return math.exp(-(low + high) / 2), None


def _pairs(groups: Sequence[Judged]) -> tuple[Array, Array, np.ndarray]:
    gaps, truth, owners = [], [], []
    for owner, group in enumerate(groups):
        scores, labels = (np.asarray(values, dtype=np.float64) for values in (group.scores, group.labels))
        first, second = np.triu_indices(len(scores), 1)
        gaps.append(scores[first] - scores[second])
        told = (np.sign(labels[first] - labels[second]) + 1) / 2
        truth.append(told if group.preference is None else np.array([group.preference]))
        owners.append(np.full(len(first), owner))
    if not gaps:
        raise ValueError("there are no judged groups to calibrate on")
    return np.concatenate(gaps), np.concatenate(truth), np.concatenate(owners)


def _held_out(gaps: Array, truth: Array, owners: np.ndarray, prompts: Sequence[str], seed: int) -> Reliability | None:
    names = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    if len(names) < FOLDS:
        return None
    fold_of = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    prompt_of = np.array([names[prompt] for prompt in prompts])
    folds = fold_of[prompt_of[owners]]
    scaled, temperatures = np.empty_like(gaps), []
    for fold in range(FOLDS):
        inside = folds == fold
        temperatures.append(fit_temperature(gaps[~inside], truth[~inside])[0])
        scaled[inside] = gaps[inside] / temperatures[-1]
    return reliability(scaled, truth, float(np.mean(temperatures)))


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))


def _log_loss(gaps: Array, truth: Array) -> float:
    # softplus(-g) y + softplus(g) (1 - y)
    return float((truth * np.logaddexp(0, -gaps) + (1 - truth) * np.logaddexp(0, gaps)).mean())
