"""Losses that also read how likely a response is with other pictures: the part of preference that is about seeing.

``chosen_other`` and ``rejected_other`` are branches with the same responses and other pictures (``chosen@noise``,
``rejected@blank_mean``, ...). c, r, o = log-ratios of chosen, rejected and chosen_other; every tensor is [batch].
"""

import torch.nn.functional as F

from mmalign.losses.numerics import Rows, difference, full_precision, require_not_negative, require_positive


def chip(
    chosen_logratio: Rows,
    rejected_logratio: Rows,
    chosen_other_logratio: Rows,
    chosen_token_kl: Rows,
    rejected_token_kl: Rows,
    *,
    beta: float,
    token_weight: float = 0.1,
) -> Rows:
    """-log sigma(beta ((c - r) + (c - o) - token_weight (KL_r - sg KL_c))).

    CHiP (arXiv 2501.16629) as LVUGAI/CHiP's llava/train/llava_trainer.py ``chip_loss`` computes it: response, picture
    and token level in one sigmoid, where the paper adds up losses of each level. KL_x sums KL(reference || policy) over
    the tokens of response x, the term of TDPO2 (arXiv 2404.11999); sg keeps no gradient. beta 0.1, token_weight 0.1
    (``tok_beta``) and pictures noised to step 500 are its script's. The segment level is weights on the tokens that
    differ, 4 there: ``vlm.changed_weight``. Each row's o comes with its own weights here; the published code multiplies
    the reference's o, already a sum, by the sum of the weights, a constant that only moves the sigmoid.
    """
    require_positive(beta=beta)
    require_not_negative(token_weight=token_weight)
    preferred = difference(chosen_logratio, rejected_logratio) + difference(chosen_logratio, chosen_other_logratio)
    drift = full_precision(rejected_token_kl) - full_precision(chosen_token_kl).detach()
    return -F.logsigmoid(beta * (preferred - token_weight * drift))


def v_dpo(
    chosen_logratio: Rows,
    rejected_logratio: Rows,
    chosen_logp: Rows,
    rejected_logp: Rows,
    chosen_other_held: Rows,
    rejected_other_held: Rows,
    *,
    beta: float,
    guidance: float,
) -> Rows:
    """-log sigma(beta (c - r + (guidance - 1) ((l_c - o_c) - (l_r - o_r)))), l = logp, o = logp with other pictures.

    V-DPO (arXiv 2411.02712), YuxiXie/V-DPO's llava_dpo/train/llava_trainer.py: the policy's log-probs are guided,
    guidance * l - (guidance - 1) * o without a gradient through o, the reference's are not. guidance (``gamma``) 1 is
    plain DPO and is refused with everything below: at 0, as the published script has it, the policy gets no gradient.
    The value of the paper's runs is not in its script. Not log 2 at the first step, because the guided policy is not
    the reference. ``scale_coeff`` 0.1 is beta; other pictures there are zeros or noise.
    """
    require_positive(beta=beta)
    if not guidance > 1:
        raise ValueError(f"guidance must be > 1 (1 is plain dpo, at 0 nothing is trained), got {guidance!r}")
    chosen_gain = full_precision(chosen_logp) - full_precision(chosen_other_held).detach()
    rejected_gain = full_precision(rejected_logp) - full_precision(rejected_other_held).detach()
    margin = difference(chosen_logratio, rejected_logratio)
    return -F.logsigmoid(beta * (margin + (guidance - 1) * (chosen_gain - rejected_gain)))
