"""Losses that read the policy alone: no reference is loaded, run or paid for.

``*_mean_logp`` is the per-token mean (diffusion: the score itself, so -2 * logp is the usual mean squared error).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.losses.numerics import Rows, full_precision, require_positive


def sft(chosen_mean_logp: Rows) -> Rows:
    """-chosen_mean_logp: maximum likelihood on the chosen side.

    Each row counts the same. TRL's ``sft`` and the NLL of RPO and MPO average over all tokens of a batch instead, so
    long responses weigh more there. For diffusion this is half the mean squared error of ordinary fine-tuning.
    """
    return -full_precision(chosen_mean_logp)


def mapo(
    chosen_logp: Rows, rejected_logp: Rows, *, beta: float = 0.1, snr: float = 0.5, num_timesteps: int = 1000
) -> Rows:
    """L_c - beta log sigma(T (f(snr L_c) - f(snr L_r))), f(x) = x / (exp(x) - 1), L = -2 logp, T = num_timesteps.

    MaPO (arXiv 2406.06424), mapo/utils.py ``compute_loss``: ``beta_mapo=0.1`` (outside the log-sigmoid), the constant
    ``snr_value=0.5`` and ``num_train_timesteps=1000``. Near L = 0 it is SFT + beta * DPO without a reference at a beta
    of 500 (f(x) ~ 1 - x/2). The published f is NaN at 0; here f(0) = 1 and d/d chosen_logp = -27 at the defaults.
    """
    require_positive(beta=beta, snr=snr, num_timesteps=num_timesteps)
    chosen_error, rejected_error = -2 * full_precision(chosen_logp), -2 * full_precision(rejected_logp)
    log_odds = _bose_factor(snr * chosen_error) - _bose_factor(snr * rejected_error)
    return chosen_error - beta * F.logsigmoid(num_timesteps * log_odds)


def _bose_factor(x: Tensor) -> Tensor:
    """x / (exp(x) - 1), with value 1 and slope -1/2 at 0, and finite slopes at any x.

    For |x| < 0.01 the Taylor series up to x^4 is exact to double precision. Elsewhere f(-x) = f(x) + x leaves only
    x > 0, where exp(-x) cannot overflow. Each form is fed a harmless constant where the other is used, because
    ``where`` would let the NaN slope of the unused one through.
    """
    near_zero = x.abs() < 1e-2
    small = torch.where(near_zero, x, 0.0)
    series = 1 - small / 2 + small**2 / 12 - small**4 / 720
    size = torch.where(near_zero, 1.0, x.abs())
    closed_form = -size * torch.exp(-size) / torch.expm1(-size) + torch.relu(-x)
    return torch.where(near_zero, series, closed_form)
