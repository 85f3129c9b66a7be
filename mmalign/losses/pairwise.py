"""Pairwise losses on the margin h = chosen_logratio - rejected_logratio.

``beta`` is in units of 1/log-ratio. Diffusion scores are means over latent dimensions, so beta is thousands there
(5000 in Diffusion-DPO) and tenths for summed token log-probs (0.1). sigma is the logistic function. All inputs are
[batch], all outputs [batch] in at least fp32; a keyword out of range is a ValueError.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.losses.numerics import (
    EXPONENT_LIMIT,
    Rows,
    bounded_exp,
    difference,
    full_precision,
    require_not_negative,
    require_positive,
)

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def dpo(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, label_smoothing: float = 0.0) -> Rows:
    """-(1 - e) log sigma(beta h) - e log sigma(-beta h), e = label_smoothing.

    DPO eq. 7 (arXiv 2305.18290); with e > 0 conservative DPO (Mitchell, "A note on DPO with noisy preferences").
    beta: as in Salesforce DiffusionDPO and the diffusers SDXL script (both write -0.5 * beta * ... on squared errors);
    the diffusers SD1.5 script has no half, so its ``beta_dpo=2500`` is 5000 here. label_smoothing in [0, 0.5], as in
    torchtune and Liger; TRL 1.16 ignores its own for the sigmoid loss.
    """
    require_positive(beta=beta)
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5], got {label_smoothing!r}")
    logit = beta * difference(chosen_logratio, rejected_logratio)
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def robust_dpo(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, label_smoothing: float) -> Rows:
    """(-(1 - e) log sigma(beta h) + e log sigma(-beta h)) / (1 - 2e), e = label_smoothing.

    Provably Robust DPO (arXiv 2403.00409): unbiased for the clean loss when a share e of the labels is flipped, so a
    single row may be negative. label_smoothing in [0, 0.5) is the assumed flip rate; TRL's ``robust`` is the same.
    """
    require_positive(beta=beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing!r}: at 0.5 labels say nothing")
    logit = beta * difference(chosen_logratio, rejected_logratio)
    signed = -(1 - label_smoothing) * F.logsigmoid(logit) + label_smoothing * F.logsigmoid(-logit)
    return signed / (1 - 2 * label_smoothing)


def ipo(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float) -> Rows:
    """(h - 1 / (2 beta))^2.

    IPO eq. 17 (arXiv 2310.12036), beta = its tau. TRL divides log-ratios by the response length first: that is this
    loss in a term with ``score: mean``. The minimum is at h = 1 / (2 beta), not at infinity.
    """
    require_positive(beta=beta)
    return (difference(chosen_logratio, rejected_logratio) - 1 / (2 * beta)) ** 2


def hinge(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float) -> Rows:
    """max(0, 1 - beta h).

    SLiC (arXiv 2305.10425) with log-ratios as in RSO (arXiv 2309.06657); beta = 1 / RSO's margin. TRL's ``hinge``.
    """
    require_positive(beta=beta)
    return torch.relu(1 - beta * difference(chosen_logratio, rejected_logratio))


def f_dpo(
    chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, divergence: Divergence, alpha: float = 0.5
) -> Rows:
    """-log sigma(beta (g(c) - g(r))), g = f' of the divergence at exp(log-ratio), without constants.

    Beyond Reverse KL (arXiv 2309.16240): reverse_kl g = x (that is ``dpo``); forward_kl g = -exp(-x); js
    g = x + log 2 - log(1 + exp(x)); alpha g = (1 - exp(-alpha x)) / alpha with alpha in [0, 1] as in the paper: 0 is
    reverse KL, 1 forward KL; TRL's ``f_alpha_divergence_coef`` is 1 - alpha. Other divergences do not read alpha.
    Exponents stop growing at 40.
    """
    require_positive(beta=beta)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r} (TRL's coefficient is 1 - alpha)")
    chosen = _divergence_slope(full_precision(chosen_logratio), divergence, alpha)
    rejected = _divergence_slope(full_precision(rejected_logratio), divergence, alpha)
    return -F.logsigmoid(beta * (chosen - rejected))


def _divergence_slope(logratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 0):
        return logratio
    if divergence == "forward_kl":
        return -bounded_exp(-logratio)
    if divergence == "js":
        return math.log(2) + F.logsigmoid(logratio)
    if divergence == "alpha":
        # expm1 keeps small alpha accurate, where 1 - exp(-alpha x) would cancel.
        return -torch.expm1((-alpha * logratio).clamp(max=EXPONENT_LIMIT)) / alpha
    raise ValueError(f"divergence must be reverse_kl | forward_kl | js | alpha, got {divergence!r}")


def exo(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, label_smoothing: float = 1e-3) -> Rows:
    """sigma(z) (log sigma(z) - log(1 - e)) + sigma(-z) (log sigma(-z) - log e), z = beta h, e = label_smoothing.

    EXO eq. 16 (arXiv 2402.00856): the reverse KL from the policy's preference to the smoothed label, where DPO has the
    forward KL. The minimum, 0, is at sigma(z) = 1 - e. label_smoothing in (0, 0.5); TRL's ``exo_pair``.
    """
    require_positive(beta=beta)
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in (0, 0.5), got {label_smoothing!r}: EXO takes its logarithm")
    logit = beta * difference(chosen_logratio, rejected_logratio)
    wins = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-label_smoothing))
    loses = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(label_smoothing))
    return wins + loses


def discopop(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, tau: float = 0.05) -> Rows:
    """(1 - m) (-log sigma(z)) + m exp(-z), m = sigma(z / tau), z = beta h.

    DiscoPOP eq. 5 (arXiv 2406.08414), TRL's ``discopop`` with ``discopop_tau``. m exp(-z) is computed as
    exp(log sigma(z / tau) - z), because the literal product is 0 * inf for very negative z.
    """
    require_positive(beta=beta, tau=tau)
    logit = beta * difference(chosen_logratio, rejected_logratio)
    logistic = -torch.sigmoid(-logit / tau) * F.logsigmoid(logit)
    return logistic + bounded_exp(F.logsigmoid(logit / tau) - logit)


def dpo_positive(chosen_logratio: Rows, rejected_logratio: Rows, *, beta: float, penalty: float) -> Rows:
    """-log sigma(beta (h - penalty max(0, -chosen_logratio))).

    DPO-Positive (Smaug, arXiv 2402.13228): the penalty applies once the chosen side is less likely than under the
    reference, against likelihood displacement. penalty = the paper's lambda >= 0 (5 to 50 there); 0 is ``dpo``.
    """
    require_positive(beta=beta)
    require_not_negative(penalty=penalty)
    displacement = torch.relu(-full_precision(chosen_logratio))
    return -F.logsigmoid(beta * (difference(chosen_logratio, rejected_logratio) - penalty * displacement))
