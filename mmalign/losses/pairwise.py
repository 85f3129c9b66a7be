"""Pairwise losses on the margin h = chosen_logratio - rejected_logratio.

``beta`` is in units of 1/log-ratio. Diffusion scores are means over latent dimensions, so beta is thousands there
(5000 in Diffusion-DPO) and tenths for summed token log-probs (0.1). sigma is the logistic function.
"""

import torch.nn.functional as F

from mmalign.losses.numerics import (
    Rows,
    difference,
    require_positive,
)


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

    Provably Robust DPO eq. 12 (arXiv 2403.00409): unbiased for the clean loss when a share e of labels is flipped, so a
    single row may be negative. label_smoothing in [0, 0.5), the assumed flip rate; TRL's ``robust`` is the same.
    """
    require_positive(beta=beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing!r}: at 0.5 labels say nothing")
    logit = beta * difference(chosen_logratio, rejected_logratio)
    signed = -(1 - label_smoothing) * F.logsigmoid(logit) + label_smoothing * F.logsigmoid(-logit)
    return signed / (1 - 2 * label_smoothing)
