"""The loss types of TRL's DPOTrainer are a subset of ours: their formulas, retyped in float64, against our terms.

Source: huggingface/trl 1.16, trl/trainer/dpo_trainer.py, method ``_compute_loss`` (Apache-2.0), read, not copied.
Deviations, each held by a test below or stated here:

- ``sigmoid``: TRL 1.16 ignores ``label_smoothing``; ours applies it (conservative DPO) unless it is 0.
- ``sigmoid_norm`` and ``ipo`` are per-token: ours are ``dpo`` and ``ipo`` in a term with ``score: mean``.
- ``bco_pair`` has no shift in TRL 1.16: ours at ``shift: 0``; InternVL and ms-swift keep the shift.
- ``aot`` and ``aot_unpaired``: TRL also mixes in the flipped loss with ``label_smoothing``; ours is the paper's (0).
- ``sft``: TRL averages over all chosen tokens of a batch, ours per row; they agree where lengths do.
- ``f_alpha_divergence_coef`` is 1 - our ``alpha``; TRL clamps exponents at 80 in fp32, and only for that divergence.
- TRL passes f-divergence scores into every loss type; ours combine with the sigmoid alone (``f_dpo``).
- ``use_weighting`` (WPO) and ``ld_alpha`` weigh tokens, which is the adapter's side.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmalign.losses import Objective
from mmalign.types import BranchScores, Scores

BETA, SMOOTHING, TAU = 0.3, 0.1, 0.05
CHOSEN_LENGTH, REJECTED_LENGTH = np.array([3.0, 7, 5, 2, 11]), np.array([4.0, 5, 9, 3, 6])
_GENERATOR = np.random.default_rng(0)
CHOSEN_LOGP, REJECTED_LOGP, REF_CHOSEN_LOGP, REF_REJECTED_LOGP = -6 + 2 * _GENERATOR.standard_normal((4, 5))
C, R = CHOSEN_LOGP - REF_CHOSEN_LOGP, REJECTED_LOGP - REF_REJECTED_LOGP
DELTA = C - R


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def logsigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


def trl_exo() -> np.ndarray:
    win, lose = sigmoid(BETA * DELTA), sigmoid(-BETA * DELTA)
    return win * (np.log(win) - math.log(1 - SMOOTHING)) + lose * (np.log(lose) - math.log(SMOOTHING))


def trl_discopop() -> np.ndarray:
    modulation = sigmoid(BETA * DELTA / TAU)
    return -logsigmoid(BETA * DELTA) * (1 - modulation) + np.exp(-BETA * DELTA) * modulation


def trl_aot() -> np.ndarray:
    return -logsigmoid(BETA * (np.sort(CHOSEN_LOGP - REJECTED_LOGP) - np.sort(REF_CHOSEN_LOGP - REF_REJECTED_LOGP)))


# TRL loss type -> (TRL's formula, our term)
TRL: dict[str, tuple[Callable[[], np.ndarray], dict[str, Any]]] = {
    "sigmoid": (lambda: -logsigmoid(BETA * DELTA), {"loss": "dpo", "beta": BETA}),
    "sigmoid_norm": (
        lambda: -logsigmoid(BETA * (C / CHOSEN_LENGTH - R / REJECTED_LENGTH)),
        {"loss": "dpo", "beta": BETA, "score": "mean"},
    ),
    "hinge": (lambda: np.maximum(1 - BETA * DELTA, 0), {"loss": "hinge", "beta": BETA}),
    "ipo": (
        lambda: (C / CHOSEN_LENGTH - R / REJECTED_LENGTH - 1 / (2 * BETA)) ** 2,
        {"loss": "ipo", "beta": BETA, "score": "mean"},
    ),
    "exo_pair": (trl_exo, {"loss": "exo", "beta": BETA, "label_smoothing": SMOOTHING}),
    "nca_pair": (
        lambda: -logsigmoid(BETA * C) - 0.5 * logsigmoid(-BETA * C) - 0.5 * logsigmoid(-BETA * R),
        {"loss": "nca", "beta": BETA},
    ),
    "robust": (
        lambda: (
            (-(1 - SMOOTHING) * logsigmoid(BETA * DELTA) + SMOOTHING * logsigmoid(-BETA * DELTA)) / (1 - 2 * SMOOTHING)
        ),
        {"loss": "robust_dpo", "beta": BETA, "label_smoothing": SMOOTHING},
    ),
    "bco_pair": (
        lambda: -logsigmoid(BETA * C) - logsigmoid(-BETA * R),
        {"loss": "bco_pair", "beta": BETA, "shift": 0},
    ),
    "sppo_hard": (lambda: (C - 0.5 / BETA) ** 2 + (R + 0.5 / BETA) ** 2, {"loss": "sppo", "beta": BETA}),
    "aot": (trl_aot, {"loss": "aot", "beta": BETA}),
    "aot_unpaired": (
        lambda: -logsigmoid(BETA * (np.sort(C) - np.sort(R))),
        {"loss": "aot_unpaired", "beta": BETA},
    ),
    "apo_zero": (lambda: 1 - sigmoid(BETA * C) + sigmoid(BETA * R), {"loss": "apo_zero", "beta": BETA}),
    "apo_down": (lambda: sigmoid(BETA * C) + 1 - sigmoid(BETA * DELTA), {"loss": "apo_down", "beta": BETA}),
    "discopop": (trl_discopop, {"loss": "discopop", "beta": BETA, "tau": TAU}),
}


def scores() -> Scores:
    columns = (CHOSEN_LOGP, REF_CHOSEN_LOGP, CHOSEN_LENGTH, REJECTED_LOGP, REF_REJECTED_LOGP, REJECTED_LENGTH)
    chosen_logp, ref_chosen, chosen_length, rejected_logp, ref_rejected, rejected_length = map(torch.tensor, columns)
    return Scores(
        {
            "chosen": BranchScores(chosen_logp, ref_chosen, chosen_length),
            "rejected": BranchScores(rejected_logp, ref_rejected, rejected_length),
        }
    )


def assert_rows_match(term: dict[str, Any], expected: np.ndarray) -> None:
    output = Objective([term])(scores())
    torch.testing.assert_close(output.term_losses[term["loss"]], torch.tensor(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.loss, torch.tensor(expected.mean()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_type", sorted(TRL))
def test_loss_type(loss_type: str) -> None:
    formula, term = TRL[loss_type]
    assert_rows_match(term, formula())


def test_sft_is_the_token_mean_where_lengths_agree() -> None:
    per_token = scores()
    length = torch.full((5,), 4.0, dtype=torch.float64)
    same_length = Scores({"chosen": BranchScores(per_token["chosen"].logp, None, length)})
    # TRL: cross-entropy over all chosen tokens of the batch = total negative logp / total number of tokens.
    over_all_tokens = -per_token["chosen"].logp.sum() / length.sum()
    torch.testing.assert_close(Objective([{"loss": "sft"}])(same_length).loss, over_all_tokens)


@pytest.mark.parametrize("coefficient", [0.3, 0.5, 0.8])
def test_alpha_divergence_is_one_minus_alpha(coefficient: float) -> None:
    def trl(logratio: np.ndarray) -> np.ndarray:
        return np.exp((coefficient - 1) * logratio) / (coefficient - 1)

    term = {"loss": "f_dpo", "beta": BETA, "divergence": "alpha", "alpha": 1 - coefficient}
    assert_rows_match(term, -logsigmoid(BETA * (trl(C) - trl(R))))


@pytest.mark.parametrize(
    ("divergence", "slope"),
    [
        ("reverse_kl", lambda x: x),
        ("forward_kl", lambda x: -np.exp(-x)),
        ("js", logsigmoid),
    ],
)
def test_f_divergences(divergence: str, slope: Callable[[np.ndarray], np.ndarray]) -> None:
    expected = -logsigmoid(BETA * (slope(C) - slope(R)))
    assert_rows_match({"loss": "f_dpo", "beta": BETA, "divergence": divergence}, expected)


def test_several_loss_types_are_a_weighted_objective() -> None:
    """TRL's ``loss_type`` list with ``loss_weights`` 0.8, 0.2 and 1 is InternVL's MPO."""
    terms = [
        {"loss": "dpo", "beta": BETA, "coefficient": 0.8},
        {"loss": "bco_pair", "beta": BETA, "coefficient": 0.2},
        {"loss": "sft"},
    ]
    expected = (
        0.8 * TRL["sigmoid"][0]().mean() + 0.2 * TRL["bco_pair"][0]().mean() - (CHOSEN_LOGP / CHOSEN_LENGTH).mean()
    )
    torch.testing.assert_close(Objective(terms)(scores()).loss, torch.tensor(expected), rtol=1e-10, atol=1e-12)


def test_label_smoothing_is_not_ignored() -> None:
    smoothed = -(1 - SMOOTHING) * logsigmoid(BETA * DELTA) - SMOOTHING * logsigmoid(-BETA * DELTA)
    assert_rows_match({"loss": "dpo", "beta": BETA, "label_smoothing": SMOOTHING}, smoothed)
