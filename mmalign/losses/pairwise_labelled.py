"""Pairwise losses that ask the data for more than an order: a soft label or a reward gap.

``preference`` [batch] is the probability that chosen wins (1 hard label, 0.5 tie); ``margin`` [batch] an external
reward gap, reward(chosen) - reward(rejected). h = chosen_logratio - rejected_logratio. All outputs are [batch].
"""

import torch
import torch.nn.functional as F

from mmalign.losses.numerics import Rows, difference, full_precision, require_positive

HARD_LABEL_MARGIN = 1e-6
"""``irepo`` keeps probabilities this far from 0 and 1, so a hard label asks for a reward gap of 13.8, not infinity."""


def soft_dpo(chosen_logratio: Rows, rejected_logratio: Rows, preference: Rows, *, beta: float) -> Rows:
    """-p log sigma(beta h) - (1 - p) log sigma(-beta h), p = preference.

    Cross-entropy of DPO's win probability with a soft label; p = 1 is ``dpo``, p = 1 - e is ``dpo`` with
    label_smoothing e, and a tie (p = 0.5) pulls the margin to 0. The minimum is at sigma(beta h) = p.
    """
    require_positive(beta=beta)
    logit = beta * difference(chosen_logratio, rejected_logratio)
    preference = full_precision(preference)
    return -preference * F.logsigmoid(logit) - (1 - preference) * F.logsigmoid(-logit)


def smoothed_dpo(
    chosen_logratio: Rows, rejected_logratio: Rows, preference: Rows, *, beta: float, scale: float = 1.0
) -> Rows:
    """-log sigma(scale (2p - 1) beta h), p = preference.

    SmPO-Diffusion (arXiv 2506.02698): the label scales the margin, so a tie is constant log 2 and teaches nothing. The
    paper has -log sigma((2 alpha - gamma) beta h). The official code is scale = 10 with p the softmax of two min-max
    normalised PickScores, beta 2000 (SD1.5) or 5000 (SDXL) in our units.
    """
    require_positive(beta=beta, scale=scale)
    confidence = 2 * full_precision(preference) - 1
    return -F.logsigmoid(scale * confidence * beta * difference(chosen_logratio, rejected_logratio))


def margin_dpo(chosen_logratio: Rows, rejected_logratio: Rows, margin: Rows, *, beta: float) -> Rows:
    """-log sigma(beta h - margin).

    ODPO (arXiv 2402.10571), DPO with an offset: chosen must win by ``margin``, which the paper sets to
    alpha * log(score gap). A zero margin is ``dpo``.
    """
    require_positive(beta=beta)
    return -F.logsigmoid(beta * difference(chosen_logratio, rejected_logratio) - full_precision(margin))


def modpo(chosen_logratio: Rows, rejected_logratio: Rows, margin: Rows, *, beta: float, weight: float) -> Rows:
    """-log sigma((beta h - margin) / weight), margin = w_-k . (r_-k(chosen) - r_-k(rejected)).

    MODPO (arXiv 2310.03708): the other objectives' weighted reward gap is subtracted before the pair's own objective is
    fitted. weight = w_k in (0, 1], the weight of the objective that the pairs were labelled by.
    """
    require_positive(beta=beta)
    if not 0 < weight <= 1:
        raise ValueError(f"weight must lie in (0, 1], got {weight!r}: the weights of all objectives sum to 1")
    return -F.logsigmoid((beta * difference(chosen_logratio, rejected_logratio) - full_precision(margin)) / weight)


def irepo(chosen_logratio: Rows, rejected_logratio: Rows, preference: Rows, *, beta: float) -> Rows:
    """(beta h - log(p / (1 - p)))^2, p = preference.

    iREPO (arXiv 2405.15230): regression of the implicit reward gap on the logit of the empirical preference. p is kept
    within [1e-6, 1 - 1e-6], as the logit of a hard label is infinite. There is no public code to compare with.
    """
    require_positive(beta=beta)
    target = torch.logit(full_precision(preference), eps=HARD_LABEL_MARGIN)
    return (beta * difference(chosen_logratio, rejected_logratio) - target) ** 2
