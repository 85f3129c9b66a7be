"""What single losses promise beyond the table: limits, ties, clamps, detached estimates."""

import math

import pytest
import torch

from mmalign.losses import (
    asft,
    bco,
    bco_pair,
    diffusion_kto,
    discopop,
    dpo,
    f_dpo,
    irepo,
    kto,
    lambda_rank,
    mapo,
    orpo,
    plackett_luce,
    ranklist,
    smoothed_dpo,
    soft_dpo,
)

F64 = torch.float64
C = torch.tensor([1.5, -2.0, 0.3, 0.0], dtype=F64)
R = torch.tensor([0.5, 1.0, -0.7, 0.0], dtype=F64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mapo_at_zero_error(dtype: torch.dtype) -> None:
    """f(0) = 1, and d/d chosen_logp = -2 (1 + beta / 2 * T * snr / 2) = -27 at the defaults; the published f is NaN."""
    chosen = torch.zeros(1, dtype=dtype, requires_grad=True)
    rejected = torch.zeros(1, dtype=dtype, requires_grad=True)
    loss = mapo(chosen, rejected)
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), torch.tensor([0.1 * math.log(2)], dtype=F64), rtol=1e-6, atol=0)
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == -27.0
    assert rejected.grad.item() == 25.0


def test_mapo_is_smooth_across_the_switch_of_forms() -> None:
    """Both forms of x / expm1(x) agree to double precision where they meet (snr * L = 0.01), and for L < 0."""
    errors = torch.tensor([-40.0, -1.0, -0.0201, -0.0199, 1e-8, 0.0199, 0.0201, 1.0, 40.0], dtype=F64)
    x = 0.5 * errors
    f = x / torch.expm1(x)
    chosen = (-errors / 2).requires_grad_()
    got = mapo(chosen, torch.full_like(chosen, -0.05), num_timesteps=1)
    reference = 0.05 / torch.expm1(torch.tensor(0.05, dtype=F64))
    expected = errors - 0.1 * torch.nn.functional.logsigmoid(f - reference)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)
    (gradient,) = torch.autograd.grad(got.sum(), chosen)
    steep = mapo(chosen.detach() + 1e-6, torch.full_like(chosen, -0.05), num_timesteps=1)
    flat = mapo(chosen.detach() - 1e-6, torch.full_like(chosen, -0.05), num_timesteps=1)
    torch.testing.assert_close(gradient, (steep - flat) / 2e-6, rtol=1e-6, atol=0)


def test_mapo_at_practical_errors_is_sft_and_dpo_without_reference() -> None:
    """At mean squared errors of 0.10 and 0.11 the log-odds are 2.456, near 250 * 0.01 (research note, computed)."""
    chosen, rejected = torch.tensor([-0.05], dtype=F64), torch.tensor([-0.055], dtype=F64)
    log_odds = -torch.log(torch.expm1((mapo(chosen, rejected) - 0.10) / 0.1))
    torch.testing.assert_close(log_odds, torch.tensor([2.456], dtype=F64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", [orpo, asft])
@pytest.mark.parametrize("mean_logp", [0.0, -1e-9, 0.5])
def test_odds_are_clamped_below_probability_one(loss, mean_logp: float) -> None:
    rejected = torch.tensor([mean_logp], requires_grad=True)
    value = loss(torch.tensor([-0.5]), rejected, weight=1.0)
    value.backward()
    torch.testing.assert_close(value, loss(torch.tensor([-0.5]), torch.tensor([-1e-6]), weight=1.0))
    assert rejected.grad is not None
    assert rejected.grad.item() == 0.0


def test_orpo_lowers_the_rejected_side() -> None:
    """The diffusers ORPO scripts have the opposite sign; one gradient step here must raise the margin."""
    chosen, rejected = torch.tensor([-1.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    orpo(chosen, rejected, weight=1.0).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad < 0 < rejected.grad


def test_dpo_at_diffusion_scale_is_the_published_objective() -> None:
    """logp = -MSE / 2 and beta 5000 give -log sigma(-0.5 * 5000 * (model_diff - ref_diff))."""
    model_chosen, model_rejected, ref_chosen, ref_rejected = torch.tensor([0.100, 0.112, 0.101, 0.111], dtype=F64)
    inside = -0.5 * 5000 * ((model_chosen - model_rejected) - (ref_chosen - ref_rejected))
    logratio = -0.5 * (model_chosen - ref_chosen), -0.5 * (model_rejected - ref_rejected)
    got = dpo(logratio[0][None], logratio[1][None], beta=5000)
    torch.testing.assert_close(got, -torch.nn.functional.logsigmoid(inside)[None])


def test_soft_label_limits() -> None:
    ones = torch.ones_like(C)
    torch.testing.assert_close(soft_dpo(C, R, ones, beta=0.5), dpo(C, R, beta=0.5))
    torch.testing.assert_close(soft_dpo(C, R, 0.8 * ones, beta=0.5), dpo(C, R, beta=0.5, label_smoothing=0.2))
    torch.testing.assert_close(smoothed_dpo(C, R, ones, beta=0.5), dpo(C, R, beta=0.5))
    ties = smoothed_dpo(C.clone().requires_grad_(), R, 0.5 * ones, beta=0.5)
    torch.testing.assert_close(ties, math.log(2) * ones)


def test_divergence_limits() -> None:
    """alpha -> 0 is reverse KL, alpha = 1 is forward KL (its constant cancels)."""
    for alpha in (0.0, 1e-9):
        torch.testing.assert_close(f_dpo(C, R, beta=0.5, divergence="alpha", alpha=alpha), dpo(C, R, beta=0.5))
    forward = f_dpo(C, R, beta=0.5, divergence="forward_kl")
    torch.testing.assert_close(f_dpo(C, R, beta=0.5, divergence="alpha", alpha=1.0), forward)
    torch.testing.assert_close(f_dpo(C, R, beta=0.5, divergence="reverse_kl"), dpo(C, R, beta=0.5))


def test_discopop_where_the_literal_form_is_nan() -> None:
    """At z = -1000 and tau < 1 the exponential part vanishes and the logistic part is 1000."""
    loss = discopop(torch.tensor([-1e4]), torch.tensor([0.0]), beta=0.1)
    torch.testing.assert_close(loss, torch.tensor([1000.0]))


def test_irepo_hard_label_asks_for_a_finite_gap() -> None:
    target = math.log((1 - 1e-6) / 1e-6)
    hard = torch.ones(1, dtype=F64)
    loss = irepo(torch.tensor([target], dtype=F64), torch.zeros(1, dtype=F64), hard, beta=1.0)
    torch.testing.assert_close(loss, torch.zeros(1, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [plackett_luce, ranklist])
def test_a_list_of_two_is_dpo(loss) -> None:
    candidates, labels = torch.stack([R, C], dim=-1), torch.tensor([[0.0, 1.0]], dtype=F64).expand(4, 2)
    torch.testing.assert_close(loss(candidates, labels, beta=0.5), dpo(C, R, beta=0.5))


LISTS = torch.tensor([[0.4, -1.0, 0.4, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=F64)
TIED = torch.tensor([[2.0, 1.0, 1.0, 0.0], [3.0, 1.0, 1.0, 3.0]], dtype=F64)


@pytest.mark.parametrize(
    ("loss", "keywords"), [(plackett_luce, {}), (lambda_rank, {}), (ranklist, {}), (ranklist, {"skip": 1})]
)
def test_lists_do_not_depend_on_storage_order(loss, keywords: dict[str, int]) -> None:
    """Also with tied labels and tied scores, where sorting alone would depend on it."""
    before = loss(LISTS, TIED, beta=0.7, **keywords)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0], [1, 0, 3, 2]):
        torch.testing.assert_close(loss(LISTS[:, order], TIED[:, order], beta=0.7, **keywords), before)


def test_plackett_luce_shares_a_denominator_among_ties() -> None:
    z = torch.tensor([[0.3, -0.2, 0.9]], dtype=F64)
    a, b, c = z[0].tolist()
    lse = math.log(math.exp(a) + math.exp(b) + math.exp(c))
    got = plackett_luce(z, torch.tensor([[1.0, 1.0, 0.0]], dtype=F64))
    torch.testing.assert_close(got, torch.tensor([2 * lse - a - b], dtype=F64))


@pytest.mark.parametrize("loss", [lambda_rank, ranklist])
def test_all_tied_labels_give_no_term(loss) -> None:
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = loss(z, torch.ones(2, 3))
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0]
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_lambda_rank_learns_from_the_first_step() -> None:
    """At policy == reference all scores tie; equal ranks would make every weight, and so every gradient, 0."""
    z = torch.zeros(1, 3, requires_grad=True)
    lambda_rank(z, torch.tensor([[0.0, 2.0, 1.0]]), beta=5000).sum().backward()
    assert z.grad is not None
    assert z.grad[0, 1] < z.grad[0, 2]
    assert z.grad[0, 1] < 0 < z.grad[0, 0]


def test_diffusion_kto_default_utility_is_kto() -> None:
    desirable = torch.tensor([True, False, True, False])
    torch.testing.assert_close(
        diffusion_kto(C, desirable, beta=0.7, kl=0.2, undesirable_weight=1.3),
        kto(C, desirable, beta=0.7, kl=0.2, undesirable_weight=1.3),
    )


def test_estimates_are_not_differentiated_and_kl_is_not_negative() -> None:
    desirable = torch.tensor([True, False, True, False])
    estimate = torch.tensor(-0.4, dtype=F64, requires_grad=True)
    chosen = C.clone().requires_grad_()
    losses = kto(chosen, desirable, beta=0.7, kl=estimate) + bco(chosen, desirable, beta=0.7, shift=estimate)
    (losses + bco_pair(chosen, R, beta=0.7, shift=estimate)).sum().backward()
    assert estimate.grad is None
    torch.testing.assert_close(kto(C, desirable, beta=0.7, kl=estimate), kto(C, desirable, beta=0.7))


def test_bco_density_ratio_weighs_undesirable_rows_only() -> None:
    desirable = torch.tensor([True, False, True, False])
    weight = torch.tensor([5.0, 2.0, 7.0, 3.0], dtype=F64)
    ratio = bco(C, desirable, beta=0.7, weight=weight) / bco(C, desirable, beta=0.7)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2.0, 1.0, 3.0], dtype=F64))
