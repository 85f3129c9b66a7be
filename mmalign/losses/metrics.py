"""Diagnostics that need only scores: per-row numbers, whose reduction is the caller's.

Watch ``chosen_logratio`` and ``rejected_logratio`` separately: a growing margin with a falling chosen log-ratio is
likelihood displacement, which accuracy and margin hide.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from mmalign.losses.numerics import Rows, full_precision
from mmalign.types import CHOSEN, REJECTED, Scores


def preference_metrics(scores: Scores, beta: float | None = None) -> dict[str, Tensor]:
    """Per-row diagnostics [batch] of the chosen and rejected branches; empty unless both were scored.

    Always: ``accuracy`` (1 where the margin is > 0, 0.5 at 0), ``margin``, ``chosen_logp``, ``rejected_logp`` and
    ``ranking_accuracy`` (of the policy's mean logp alone). With a reference: ``chosen_logratio``,
    ``rejected_logratio``, and the margin is of log-ratios; without, of logp. With token lengths: ``*_length``. With
    ``beta`` and a reference: ``win_probability`` = sigma(beta * margin), and, where the rows have a preference,
    ``idealised_ranking_accuracy``: the ranking accuracy of the policy that fits every label exactly, i.e. of
    ref_chosen_logp - ref_rejected_logp + logit(p) / beta (arXiv 2405.19534). Nothing keeps a gradient.
    """
    if CHOSEN not in scores.branches or REJECTED not in scores.branches:
        return {}
    chosen, rejected = scores[CHOSEN], scores[REJECTED]
    metrics = {
        "chosen_logp": full_precision(chosen.logp),
        "rejected_logp": full_precision(rejected.logp),
        "ranking_accuracy": _wins(chosen.mean_logp - rejected.mean_logp),
    }
    for side, branch in ((CHOSEN, chosen), (REJECTED, rejected)):
        if branch.length is not None:
            metrics[f"{side}_length"] = full_precision(branch.length)
    margin = metrics["chosen_logp"] - metrics["rejected_logp"]
    if chosen.ref_logp is not None and rejected.ref_logp is not None:
        metrics |= {
            "chosen_logratio": full_precision(chosen.logratio),
            "rejected_logratio": full_precision(rejected.logratio),
        }
        margin = metrics["chosen_logratio"] - metrics["rejected_logratio"]
        if beta is not None:
            metrics["win_probability"] = torch.sigmoid(beta * margin)
            if scores.preference is not None:
                reference_gap = full_precision(chosen.ref_logp) - full_precision(rejected.ref_logp)
                target = torch.logit(full_precision(scores.preference)) / beta
                metrics["idealised_ranking_accuracy"] = _wins(reference_gap + target)
    metrics |= {"margin": margin, "accuracy": _wins(margin)}
    return {name: value.detach() for name, value in metrics.items()}


def expected_calibration_error(probabilities: Rows, preference: Rows, bins: int = 10) -> Float[Tensor, ""]:
    """sum_b n_b / n |mean confidence - mean accuracy| over ``bins`` equal bins of confidence in [0.5, 1].

    ``probabilities`` that chosen wins (``win_probability``), ``preference`` the share of raters for whom it does. Pairs
    are stored winner first, so each is turned round to the side that the model favours: confidence = max(q, 1 - q),
    accuracy = how often that side wins. 0 is perfectly calibrated. Pass all gathered rows at once: the error of a union
    is not the mean of errors.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins!r}")
    probabilities, preference = full_precision(probabilities), full_precision(preference)
    favoured = probabilities >= 0.5
    confidence = torch.where(favoured, probabilities, 1 - probabilities)
    correct = torch.where(favoured, preference, 1 - preference)
    # At exactly one half no side is favoured.
    correct = torch.where(probabilities == 0.5, 0.5, correct)
    index = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device)
    gaps.index_add_(0, index, confidence - correct)
    return gaps.abs().sum() / max(len(confidence), 1)


def timestep_bins(
    margin: Rows, timestep: Num[Tensor, " batch"], bins: int = 10, num_timesteps: int = 1000
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """(sum of margins, number of rows) per equal bin of timestep in [0, num_timesteps).

    Sums and counts add up over batches and processes; sum / count is the mean margin of a bin. Preference is learnt at
    few noise levels, which the average over timesteps hides.
    """
    if bins < 1 or num_timesteps < 1:
        raise ValueError(f"bins and num_timesteps must be >= 1, got {bins!r} and {num_timesteps!r}")
    margin = full_precision(margin.detach())
    # A flow model's time 1 is timestep 1000, which belongs to the last bin.
    index = (timestep * bins / num_timesteps).long().clamp(0, bins - 1)
    totals = torch.zeros(bins, dtype=margin.dtype, device=margin.device).index_add_(0, index, margin)
    counts = torch.zeros_like(totals).index_add_(0, index, torch.ones_like(margin))
    return totals, counts


def _wins(gap: Tensor) -> Tensor:
    """1 where gap > 0, 0.5 where it is 0, 0 below."""
    return 0.5 * (1 + torch.sign(full_precision(gap)))
