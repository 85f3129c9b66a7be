"""Losses on reward scores: pure functions, offered to mmalign through the entry-point group ``mmalign.losses``.

d = chosen_score - rejected_score, where a score is the reward model's number as it is trained (a logit: sigma(d) is
the probability that chosen wins). ``preference`` [batch] is the probability p that chosen wins: 1 is a hard label, 0.5
a tie. Everything is [batch]; the trainer averages, where HPSv2 sums over the batch (AdamW does not see the difference,
a gradient-norm limit does).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmalign.losses.numerics import Rows, difference, full_precision, require_not_negative, require_positive

Features = Float[Tensor, "batch width"]

MOST_POINTS = 128


def bradley_terry(chosen_score: Rows, rejected_score: Rows, *, margin: float = 0.0) -> Rows:
    """-log sigma(d - margin).

    Bradley and Terry (1952). ImageReward (arXiv 2304.05977, train.py:45) and HPSv3's ``bt`` are margin = 0, HPSv3's
    ``constant_margin`` is margin = 0.57. For a margin that each row brings, see ``margin_bradley_terry``.
    """
    require_not_negative(margin=margin)
    return -F.logsigmoid(difference(chosen_score, rejected_score) - margin)


def margin_bradley_terry(chosen_score: Rows, rejected_score: Rows, margin: Rows) -> Rows:
    """-log sigma(d - margin), margin = how much better the raters found chosen, row by row.

    Llama 2 (arXiv 2307.09288, equation 2). The rows' ``margin`` has the scale of the scores.
    """
    return -F.logsigmoid(difference(chosen_score, rejected_score) - full_precision(margin))


def preference_ce(chosen_score: Rows, rejected_score: Rows, preference: Rows) -> Rows:
    """-p log sigma(d) - (1 - p) log sigma(-d), p = preference.

    HPSv2 (arXiv 2306.09341, loss.py HPSLoss) with score = exp(logit_scale) * cosine; the official code sums over the
    batch. p = 1 is ``bradley_terry``; a tie costs log 2 at best, at d = 0.
    """
    d, p = difference(chosen_score, rejected_score), full_precision(preference)
    return -p * F.logsigmoid(d) - (1 - p) * F.logsigmoid(-d)


def preference_kl(chosen_score: Rows, rejected_score: Rows, preference: Rows) -> Rows:
    """KL(p || sigma(d)) = -p log sigma(d) - (1 - p) log sigma(-d) + p log p + (1 - p) log(1 - p), 0 log 0 = 0.

    PickScore (arXiv 2305.01569, clip_criterion.py:100): ``preference_ce`` less the label's entropy, so that every row
    costs 0 where sigma(d) = p, a tie at d = 0. Same gradient. The official code weighs rows by 1 / pairs of the prompt.
    """
    p = full_precision(preference)
    return preference_ce(chosen_score, rejected_score, preference) + torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)


def davidson(chosen_score: Rows, rejected_score: Rows, preference: Rows, *, nu: float = 1.0) -> Rows:
    """-w log P(win) - t log P(tie) - l log P(loss), P(tie) = nu / (e^(d/2) + e^(-d/2) + nu).

    Davidson (1970): P(win) = e^(d/2) / (the same sum), P(loss) = e^(-d/2) / it; nu > 0 says how common ties are (equal
    pictures tie with probability nu / (2 + nu)). A label p is taken as w = max(2p - 1, 0), t = 1 - |2p - 1|,
    l = max(1 - 2p, 0): hard labels and ties are exact, what lies between is a mixture of the two with w + t/2 = p.
    """
    require_positive(nu=nu)
    d = difference(chosen_score, rejected_score)
    log_nu = torch.full_like(d, math.log(nu))
    total = torch.logsumexp(torch.stack([d / 2, -d / 2, log_nu]), dim=0)
    win, tie, loss = _outcomes(preference)
    return total - win * d / 2 + loss * d / 2 - tie * log_nu


def rao_kupper(chosen_score: Rows, rejected_score: Rows, preference: Rows, *, theta: float = 2.0) -> Rows:
    """-w log P(win) - t log P(tie) - l log P(loss), P(win) = sigma(d - log theta).

    Rao and Kupper (1967): P(loss) = sigma(-d - log theta), P(tie) = (theta^2 - 1) P(win) P(loss); pictures closer than
    the threshold log theta > 0 look alike. w, t, l of the label p as in ``davidson``. HPSv3's loss with ties is this
    with theta = 5.
    """
    if not theta > 1:
        raise ValueError(f"theta must be > 1, got {theta!r}: at 1 there are no ties")
    d, threshold = difference(chosen_score, rejected_score), math.log(theta)
    log_win, log_loss = F.logsigmoid(d - threshold), F.logsigmoid(-d - threshold)
    win, tie, loss = _outcomes(preference)
    return -(win + tie) * log_win - (loss + tie) * log_loss - tie * math.log(theta**2 - 1)


def gaussian_bt(
    chosen_score: Rows, rejected_score: Rows, chosen_std: Rows, rejected_std: Rows, *, points: int = 32
) -> Rows:
    """-E[log sigma(z)], z ~ N(d, chosen_std^2 + rejected_std^2).

    HPSv3 (arXiv 2508.03789): a reward model that says how sure it is. The official code draws 1000 z per pair in fp16;
    here the integral is a Gauss-Hermite sum over ``points`` nodes, without randomness. Not for standard deviations far
    above 10, where the sum needs more points.
    """
    if not 2 <= points <= MOST_POINTS:
        raise ValueError(f"points must lie in [2, {MOST_POINTS}], got {points!r}")
    d = difference(chosen_score, rejected_score)
    variance = full_precision(chosen_std) ** 2 + full_precision(rejected_std) ** 2
    spread = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()  # a root's gradient at 0 would be infinite
    nodes, weights = _hermite(points, d)
    z = d[..., None] + spread[..., None] * nodes
    return -(weights * F.logsigmoid(z)).sum(dim=-1)


def gaussian_probability(chosen_score: Rows, rejected_score: Rows, chosen_std: Rows, rejected_std: Rows) -> Rows:
    """E[sigma(z)], z ~ N(d, chosen_std^2 + rejected_std^2): the probability that a Gaussian head gives to a win."""
    nodes, weights = _hermite(MOST_POINTS, difference(chosen_score, rejected_score))
    spread = torch.hypot(full_precision(chosen_std), full_precision(rejected_std))
    z = difference(chosen_score, rejected_score)[..., None] + spread[..., None] * nodes
    return (weights * torch.sigmoid(z)).sum(dim=-1)


def gpm(chosen_features: Features, rejected_features: Features, *, tau: float = 0.1) -> Rows:
    """-log sigma(s / tau), s = sum_k (a_2k b_2k+1 - a_2k+1 b_2k), a = chosen_features, b = rejected_features.

    General preference model (arXiv 2410.02197): a' R b with R skew and block-diagonal, so s is antisymmetric and can
    say that A beats B beats C beats A. tau = 0.1 is the official default. The width must be even.
    """
    require_positive(tau=tau)
    if chosen_features.shape[-1] % 2:
        raise ValueError(f"gpm needs features of even width, got {chosen_features.shape[-1]}")
    a, b = (full_precision(features).unflatten(-1, (-1, 2)) for features in (chosen_features, rejected_features))
    score = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(dim=-1)
    return -F.logsigmoid(score / tau)


def pal_a(
    chosen_features: Features, rejected_features: Features, ideal_point: Features, *, margin: float = 1.0
) -> Rows:
    """max(0, margin - (|rejected_features - ideal_point| - |chosen_features - ideal_point|)).

    PAL-A (arXiv 2406.08469, learner.py:98): every user has an ideal point, a mixture of shared prototypes, and prefers
    what is nearer to it. The official margin is 1.
    """
    require_positive(margin=margin)
    ideal = full_precision(ideal_point)
    near, far = (_distance(full_precision(side), ideal) for side in (chosen_features, rejected_features))
    return F.relu(margin - (far - near))


def pal_b(chosen_features: Features, rejected_features: Features, ideal_direction: Features, score_scale: Rows) -> Rows:
    """-log sigma(scale * (cos(chosen_features, ideal) - cos(rejected_features, ideal))).

    PAL-B (arXiv 2406.08469, pal_rm_b/learner.py:129): ``ideal_direction`` depends on user and prompt. ``score_scale``
    is learnt, one number for all rows, and at most 100.
    """
    ideal = full_precision(ideal_direction)
    chosen, rejected = (
        F.cosine_similarity(full_precision(side), ideal, dim=-1) for side in (chosen_features, rejected_features)
    )
    return -F.logsigmoid(full_precision(score_scale) * (chosen - rejected))


def _outcomes(preference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of win, tie and loss."""
    lead = 2 * full_precision(preference) - 1
    return lead.clamp(min=0), 1 - lead.abs(), (-lead).clamp(min=0)


def _hermite(points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights with sum_i w_i f(x_i) = E[f(x)], x ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    kind = {"dtype": like.dtype, "device": like.device}
    return torch.tensor(nodes, **kind), torch.tensor(weights / weights.sum(), **kind)


def _distance(features: Tensor, ideal: Tensor) -> Tensor:
    """Euclidean distance; its gradient at 0 is 0."""
    squared = ((features - ideal) ** 2).sum(dim=-1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
