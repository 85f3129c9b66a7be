"""Diagnostics that need only scores: per-row numbers, whose reduction is the caller's.

Watch ``chosen_logratio`` and ``rejected_logratio`` separately: a growing margin with a falling chosen log-ratio is
likelihood displacement, which accuracy and margin hide.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from mmalign.losses.numerics import Rows, full_precision
from mmalign.types import CANDIDATES, CHOSEN, REJECTED, SAMPLE, BranchScores, Scores


def preference_metrics(scores: Scores, beta: float | Tensor | None = None) -> dict[str, Tensor]:
    """Per-row diagnostics [batch] of the chosen and rejected branches; empty unless both were scored.

    Always: ``accuracy`` (1 where the margin is > 0, 0.5 at 0), ``margin``, ``chosen_logp``, ``rejected_logp`` and
    ``ranking_accuracy`` (of the policy's mean logp alone). With a reference: ``chosen_logratio``,
    ``rejected_logratio``, and the margin is of log-ratios; without, of logp. With token lengths: ``*_length``. With
    ``beta``: ``win_probability`` = sigma(beta * margin), and, with a reference and where the rows have a preference,
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
    elif beta is not None:
        metrics["win_probability"] = torch.sigmoid(beta * margin)
    metrics |= {"margin": margin, "accuracy": _wins(margin)}
    return {name: value.detach() for name, value in metrics.items()}


def ranking_metrics(scores: Scores) -> tuple[dict[str, Tensor], Bool[Tensor, " batch"]]:
    """Per-row diagnostics [batch] of ranked candidates, and the rows they hold for; empty unless they were scored.

    A row counts if two of its labels differ; the others are 0. With r = candidate log-ratio (logp without a reference):
    ``accuracy``, the share of pairs of differently labelled candidates in which the better label has the higher r (0.5
    where r ties); ``top_accuracy``, whether the highest r has the best label (shared among ties); ``kendall_tau``,
    tau-b (Kendall 1945); ``margin``, mean r of the best-labelled candidates minus that of the worst-labelled. Nothing
    keeps a gradient.
    """
    if CANDIDATES not in scores.branches or scores.labels is None:
        return {}, torch.zeros(0, dtype=torch.bool)
    reward, labels = _reward(scores[CANDIDATES]), full_precision(scores.labels)
    by_label = torch.sign(labels.unsqueeze(-1) - labels.unsqueeze(-2))
    by_reward = torch.sign(reward.unsqueeze(-1) - reward.unsqueeze(-2))
    agreement = (by_label * by_reward).sum(dim=(-2, -1))
    labelled, rewarded = by_label.abs().sum(dim=(-2, -1)), by_reward.abs().sum(dim=(-2, -1))
    best = labels == labels.amax(dim=-1, keepdim=True)
    worst = labels == labels.amin(dim=-1, keepdim=True)
    top = reward == reward.amax(dim=-1, keepdim=True)
    metrics = {
        "accuracy": 0.5 * (1 + agreement / labelled.clamp(min=1)),
        "top_accuracy": (top & best).sum(dim=-1) / top.sum(dim=-1),
        "kendall_tau": agreement / (labelled * rewarded).sqrt().clamp(min=1),
        "margin": _mean_where(reward, best) - _mean_where(reward, worst),
    }
    comparable = labelled > 0
    return {name: torch.where(comparable, value, 0.0) for name, value in metrics.items()}, comparable


def unary_metrics(scores: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (values, rows they hold for), both [batch], of single samples; empty unless they were scored.

    With r = the sample's log-ratio (logp without a reference): ``desirable_logratio`` and ``undesirable_logratio`` (or
    ``*_logp``), each over its rows; with a reference ``accuracy``, whether r is above 0 exactly where the row is
    desirable (0.5 at 0). Watch both sides: where both fall, the model only moves away from the data. Nothing keeps a
    gradient.
    """
    if SAMPLE not in scores.branches or scores.desirable is None:
        return {}
    branch, desirable = scores[SAMPLE], scores.desirable
    reward = _reward(branch)
    kind = "logp" if branch.ref_logp is None else "logratio"
    metrics = {f"desirable_{kind}": (reward, desirable), f"undesirable_{kind}": (reward, ~desirable)}
    if branch.ref_logp is not None:
        metrics["accuracy"] = (_wins(torch.where(desirable, reward, -reward)), torch.ones_like(desirable))
    return metrics


def expected_calibration_error(probabilities: Rows, preference: Rows, bins: int = 10) -> Float[Tensor, ""]:
    """sum_b n_b / n |mean confidence - mean accuracy| over ``bins`` equal bins of confidence in [0.5, 1].

    ``probabilities`` that chosen wins (``win_probability``), ``preference`` the share of raters for whom it does. Pairs
    are stored winner first, so each is turned round to the side that the model favours: confidence = max(q, 1 - q),
    accuracy = how often that side wins. 0 is perfectly calibrated. Pass all gathered rows at once: the error of a union
    is not the mean of errors.
    """
    confidence, correct, _ = calibration_bins(probabilities, preference, bins)
    return (confidence - correct).abs().sum() / max(len(probabilities), 1)


def calibration_bins(
    probabilities: Rows, preference: Rows, bins: int = 10, *, rows: Bool[Tensor, " batch"] | None = None
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """(sum of confidences, sum of accuracies, number of rows) per equal bin of confidence in [0.5, 1].

    What :func:`expected_calibration_error` is made of; sums add up over batches and processes. ``rows`` that count.
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
    return (
        _sums_by_bin(confidence, index, bins, rows),
        _sums_by_bin(correct, index, bins, rows),
        _sums_by_bin(torch.ones_like(correct), index, bins, rows),
    )


def timestep_bins(
    values: Rows,
    timestep: Num[Tensor, " batch"],
    bins: int = 10,
    num_timesteps: int = 1000,
    *,
    rows: Bool[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """(sum of values, number of rows) per equal bin of timestep in [0, num_timesteps).

    Sums and counts add up over batches and processes; sum / count is the mean of a bin, of margins for example:
    preference is learnt at few noise levels, which the average over timesteps hides. ``rows`` that count.
    """
    if bins < 1 or num_timesteps < 1:
        raise ValueError(f"bins and num_timesteps must be >= 1, got {bins!r} and {num_timesteps!r}")
    values = full_precision(values.detach())
    # A flow model's time 1 is timestep 1000, which belongs to the last bin.
    index = (timestep * bins / num_timesteps).long().clamp(0, bins - 1)
    return _sums_by_bin(values, index, bins, rows), _sums_by_bin(torch.ones_like(values), index, bins, rows)


def _sums_by_bin(values: Tensor, index: Tensor, bins: int, rows: Tensor | None) -> Tensor:
    counted = values if rows is None else torch.where(rows, values, 0.0)
    return torch.zeros(bins, dtype=values.dtype, device=values.device).index_add_(0, index, counted)


def _reward(branch: BranchScores) -> Tensor:
    """The implicit reward up to its scale: the log-ratio, or the policy's logp where there is no reference."""
    return full_precision(branch.logp if branch.ref_logp is None else branch.logratio).detach()


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension of the values that ``mask`` selects."""
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1)


def _wins(gap: Tensor) -> Tensor:
    """1 where gap > 0, 0.5 where it is 0, 0 below."""
    return 0.5 * (1 + torch.sign(full_precision(gap)))
