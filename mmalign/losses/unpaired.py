"""Losses on single samples that are desirable or not: ``logratio`` [batch] and ``desirable`` [batch] bool.

x = logratio; every output is [batch] in at least fp32. KTO's reference point ``kl`` and BCO's ``shift`` are estimates
over a batch that come in as arguments and are never differentiated; ``kl: running`` and ``shift: running`` in an
objective keep them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.losses.numerics import Rows, detached, full_precision, require_not_negative, require_positive

Flags = Bool[Tensor, " batch"]
Scalar = Float[Tensor, ""]
Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]


def kto(
    logratio: Rows,
    desirable: Flags,
    *,
    beta: float,
    kl: float | Scalar = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Rows:
    """w (1 - sigma(v)), v = +-beta (x - max(0, kl)): + for desirable rows, - for the others.

    KTO (arXiv 2402.01306), weights lambda_D and lambda_U. ``kl`` is the reference point z0 >= 0: the mean log-ratio of
    mismatched prompt-response pairs in TRL and the paper, of the matched batch in Diffusion-KTO.
    """
    value = _value(logratio, desirable, beta, kl)
    return _side_weights(value, desirable, desirable_weight, undesirable_weight) * torch.sigmoid(-value)


def diffusion_kto(
    logratio: Rows,
    desirable: Flags,
    *,
    beta: float,
    kl: float | Scalar = 0.0,
    utility: Utility = "kahneman_tversky",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Rows:
    """w (1 - U(v)), v as in ``kto``; U = sigma(v), log sigma(v) or -log sigma(-v).

    Diffusion-KTO (arXiv 2404.04465) with its utilities kahneman_tversky (the default, equal to ``kto``), loss_averse
    (concave) and risk_seeking (convex; unbounded below). The official log-ratio has no 1/2: our beta is twice theirs,
    so its 1000 is 2000 here.
    """
    value = _value(logratio, desirable, beta, kl)
    if utility == "kahneman_tversky":
        regret = torch.sigmoid(-value)
    elif utility == "loss_averse":
        regret = 1 - F.logsigmoid(value)
    elif utility == "risk_seeking":
        regret = 1 + F.logsigmoid(-value)
    else:
        raise ValueError(f"utility must be kahneman_tversky | loss_averse | risk_seeking, got {utility!r}")
    return _side_weights(value, desirable, desirable_weight, undesirable_weight) * regret


def bco(
    logratio: Rows,
    desirable: Flags,
    *,
    beta: float,
    shift: float | Scalar = 0.0,
    weight: float | Rows = 1.0,
) -> Rows:
    """-log sigma(beta x - shift) on desirable rows, -weight log sigma(-(beta x - shift)) on the others.

    BCO (arXiv 2404.04656). ``shift`` is the mean reward beta * x over all batches so far. ``weight`` is the density
    ratio clamp(p / (1 - p)) of a classifier that tells the prompts of desirable rows from the others', one number or
    [batch]; it weighs undesirable rows only, as in the paper and TRL.
    """
    require_positive(beta=beta)
    if not isinstance(weight, Tensor):
        require_not_negative(weight=weight)
    reward = beta * full_precision(logratio) - detached(shift)
    return torch.where(desirable, -F.logsigmoid(reward), -detached(weight) * F.logsigmoid(-reward))


def _value(logratio: Tensor, desirable: Tensor, beta: float, kl: float | Tensor) -> Tensor:
    """v: how much better than the reference point a row came out, seen from its side."""
    require_positive(beta=beta)
    if isinstance(kl, Tensor):
        kl = kl.detach().clamp(min=0)
    else:
        require_not_negative(kl=kl)
    gain = beta * (full_precision(logratio) - kl)
    return torch.where(desirable, gain, -gain)


def _side_weights(like: Tensor, desirable: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    require_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    return torch.full_like(like, undesirable_weight).masked_fill(desirable, desirable_weight)
