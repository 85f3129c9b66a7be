"""Losses on reward scores whose labels cannot all be trusted, and losses on several scores of one picture.

As in ``losses.py``: d = chosen_score - rejected_score, everything [batch], the trainer averages. ``*_parts`` are
[batch, parts]: one score per dimension that people judged, or one per group of people.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmalign.losses.numerics import Rows, difference, full_precision, require_positive

Parts = Float[Tensor, "batch parts"]


def robust_bradley_terry(chosen_score: Rows, rejected_score: Rows, *, flip_rate: float, unbiased: bool = False) -> Rows:
    """-log((1 - e) sigma(d) + e sigma(-d)), e = flip_rate; with ``unbiased`` [-(1 - e) ls(d) + e ls(-d)] / (1 - 2e).

    For labels of which a share e (below one half) is exchanged. The first is the likelihood of such labels (forward
    correction, Patrini et al., arXiv 1609.03683): bounded, so that a surely wrong label pulls no further. The second
    has the expectation of the loss on clean labels (Natarajan et al., NeurIPS 2013; rDPO, arXiv 2403.00409) and is
    negative without bound for large d. e = 0 is ``bradley_terry`` either way.
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must lie in [0, 0.5), got {flip_rate!r}: at one half labels say nothing")
    d = difference(chosen_score, rejected_score)
    wins, loses = F.logsigmoid(d), F.logsigmoid(-d)
    if unbiased:
        return (flip_rate * loses - (1 - flip_rate) * wins) / (1 - 2 * flip_rate)
    if not flip_rate:
        return -wins
    # log(e + (1 - 2e) sigma(d)): the sum of the two sides, where neither can underflow.
    return -torch.log(flip_rate + (1 - 2 * flip_rate) * torch.sigmoid(d))


def weighted_bradley_terry(chosen_score: Rows, rejected_score: Rows, preference: Rows, *, power: float = 1.0) -> Rows:
    """-|2p - 1|^power log sigma(d), p = preference: what raters are unsure about counts less, a tie nothing.

    p below one half trains towards the other side. ``preference_ce`` fits p instead, and pulls equal pictures together.
    """
    require_positive(power=power)
    lead = 2 * full_precision(preference) - 1
    d = difference(chosen_score, rejected_score)
    return -(lead.abs() ** power) * F.logsigmoid(torch.where(lead < 0, -d, d))


def multi_bradley_terry(chosen_parts: Parts, rejected_parts: Parts, part_preference: Parts) -> Rows:
    """mean over the dimensions k with a label of -p_k log sigma(d_k) - (1 - p_k) log sigma(-d_k).

    One head per dimension on one backbone (multi-objective reward models; MPS's four conditions, arXiv 2405.14705).
    ``part_preference``: the probability that chosen is the better one in dimension k; NaN where nobody judged it, which
    gives neither loss nor gradient. A row without any label costs 0.
    """
    losses, labelled = _by_part(chosen_parts, rejected_parts, part_preference)
    return losses.sum(dim=-1) / labelled.sum(dim=-1).clamp(min=1)


def uncertain_multi_bradley_terry(
    chosen_parts: Parts, rejected_parts: Parts, part_preference: Parts, part_log_variance: Parts
) -> Rows:
    """mean over the dimensions k with a label of exp(-s_k) loss_k + s_k / 2, s_k = part_log_variance.

    Weights by uncertainty (Kendall, Gal and Cipolla, arXiv 1705.07115, equation 10): s_k is learnt, one number for each
    dimension, so that dimensions whose labels are mostly noise count less. loss_k as in ``multi_bradley_terry``.
    """
    losses, labelled = _by_part(chosen_parts, rejected_parts, part_preference)
    log_variance = full_precision(part_log_variance)
    weighed = torch.where(labelled, torch.exp(-log_variance) * losses + log_variance / 2, 0.0)
    return weighed.sum(dim=-1) / labelled.sum(dim=-1).clamp(min=1)


def mixture_bradley_terry(chosen_parts: Parts, rejected_parts: Parts, part_weights: Parts) -> Rows:
    """-log sum_k w_k sigma(d_k), w = part_weights: the probabilities that the label comes from group k.

    A mixture of Bradley-Terry models (MaxMin-RLHF, arXiv 2402.08925, which fits it by hard assignment; MiCRo, arXiv
    2505.24846, which lets the context choose the weights). Weights are positive and sum to 1.
    """
    gaps = F.logsigmoid(full_precision(chosen_parts) - full_precision(rejected_parts))
    smallest = torch.finfo(gaps.dtype).tiny
    return -torch.logsumexp(gaps + full_precision(part_weights).clamp(min=smallest).log(), dim=-1)


def _by_part(chosen: Tensor, rejected: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [batch, parts], 0 where there is no label, and where there is one."""
    labelled = ~preference.isnan()
    p = torch.where(labelled, full_precision(preference), 0.5)
    # Zeros in the place of unlabelled scores: multiplying a loss by 0 would keep an infinite gradient.
    d = torch.where(labelled, full_precision(chosen) - full_precision(rejected), 0.0)
    losses = -p * F.logsigmoid(d) - (1 - p) * F.logsigmoid(-d)
    return torch.where(labelled, losses, 0.0), labelled
