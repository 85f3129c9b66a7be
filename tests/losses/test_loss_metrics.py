"""Diagnostics from scores, on numbers worked by hand."""

import math

import pytest
import torch

from mmalign.losses.metrics import expected_calibration_error, preference_metrics, timestep_bins
from mmalign.types import BranchScores, Scores


def scores(reference: bool = True, lengths: bool = False) -> Scores:
    chosen_logp, rejected_logp = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -2.0, -1.0])
    ref = torch.tensor([-2.0, -2.0, -4.0]) if reference else None
    length = torch.tensor([1.0, 4.0, 3.0]) if lengths else None
    ones = torch.ones(3) if lengths else None
    return Scores(
        {
            "chosen": BranchScores(chosen_logp.requires_grad_(), ref, length),
            "rejected": BranchScores(rejected_logp, ref, ones),
        }
    )


def test_metrics_with_a_reference() -> None:
    metrics = preference_metrics(scores(), beta=2.0)
    assert metrics["chosen_logratio"].tolist() == [1.0, 0.0, 1.0]
    assert metrics["rejected_logratio"].tolist() == [0.0, 0.0, 3.0]
    assert metrics["margin"].tolist() == [1.0, 0.0, -2.0]
    assert metrics["accuracy"].tolist() == [1.0, 0.5, 0.0]
    assert metrics["ranking_accuracy"].tolist() == [1.0, 0.5, 0.0]
    torch.testing.assert_close(metrics["win_probability"], torch.tensor([0.880797, 0.5, 0.0179862]))
    assert "chosen_length" not in metrics
    assert "idealised_ranking_accuracy" not in metrics
    assert not any(value.requires_grad for value in metrics.values())


def test_metrics_without_a_reference() -> None:
    metrics = preference_metrics(scores(reference=False), beta=2.0)
    assert metrics["margin"].tolist() == [1.0, 0.0, -2.0]
    assert metrics["accuracy"].tolist() == [1.0, 0.5, 0.0]
    torch.testing.assert_close(metrics["win_probability"], torch.tensor([0.880797, 0.5, 0.0179862]))
    assert not {"chosen_logratio", "idealised_ranking_accuracy"} & set(metrics)
    assert "win_probability" not in preference_metrics(scores(reference=False))


def test_ranking_accuracy_is_per_token_and_lengths_are_logged() -> None:
    metrics = preference_metrics(scores(lengths=True))
    assert metrics["chosen_length"].tolist() == [1.0, 4.0, 3.0]
    # Means -1, -0.5, -1 against -2, -2, -1.
    assert metrics["ranking_accuracy"].tolist() == [1.0, 1.0, 0.5]
    assert metrics["accuracy"].tolist() == [1.0, 0.5, 0.0]


def test_idealised_ranking_accuracy() -> None:
    """The ideal policy's gap is the reference's plus logit(p) / beta: -1 + log(3) / 1 > 0, -2 + log 3 < 0, +inf."""
    ref_chosen, ref_rejected = torch.tensor([-2.0, -3.0, -9.0]), torch.tensor([-1.0, -1.0, -1.0])
    rows = Scores(
        {
            "chosen": BranchScores(torch.zeros(3), ref_chosen),
            "rejected": BranchScores(torch.zeros(3), ref_rejected),
        },
        preference=torch.tensor([0.75, 0.75, 1.0]),
    )
    assert preference_metrics(rows, beta=1.0)["idealised_ranking_accuracy"].tolist() == [1.0, 0.0, 1.0]
    assert preference_metrics(rows, beta=0.1)["idealised_ranking_accuracy"].tolist() == [1.0, 1.0, 1.0]


def test_nothing_to_measure_without_a_pair() -> None:
    assert preference_metrics(Scores({"sample": BranchScores(torch.zeros(2))})) == {}


def test_calibration() -> None:
    ones = torch.ones(10)
    certain = torch.ones(10)
    assert expected_calibration_error(certain, ones).item() == 0.0
    assert expected_calibration_error(certain, 0 * ones).item() == 1.0
    # Says 0.8 and is right in 8 of 10; the other way round it is 0.2 and right in 2.
    right = torch.tensor([1.0] * 8 + [0.0] * 2)
    assert expected_calibration_error(0.8 * ones, right).item() == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(0.2 * ones, 1 - right).item() == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(0.2 * ones, right).item() == pytest.approx(0.6, abs=1e-6)
    # Winner-first pairs: hesitant (0.6) on all of them is under-confident by 0.4.
    assert expected_calibration_error(0.6 * ones, ones).item() == pytest.approx(0.4, abs=1e-6)
    # A model that knows nothing is calibrated.
    assert expected_calibration_error(0.5 * ones, ones).item() == 0.0


def test_calibration_errors_of_different_bins_do_not_cancel() -> None:
    probabilities = torch.tensor([0.55, 0.55, 0.95, 0.95])
    outcome = torch.tensor([1.0, 1.0, 1.0, 0.0])
    error = expected_calibration_error(probabilities, outcome, bins=10)
    assert error.item() == pytest.approx((2 * 0.45 + 2 * 0.45) / 4, abs=1e-6)
    one_bin = expected_calibration_error(probabilities, outcome, bins=1)
    assert one_bin.item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        expected_calibration_error(probabilities, outcome, bins=0)


def test_margin_by_timestep_adds_up_over_batches() -> None:
    margin = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    timestep = torch.tensor([0.0, 249.0, 250.0, 999.0, 1000.0])
    totals, counts = timestep_bins(margin, timestep, bins=4, num_timesteps=1000)
    assert totals.tolist() == [3.0, 4.0, 0.0, 24.0]
    assert counts.tolist() == [2.0, 1.0, 0.0, 2.0]
    halves = [timestep_bins(margin[s], timestep[s].long(), 4, 1000) for s in (slice(0, 2), slice(2, 5))]
    assert (halves[0][0] + halves[1][0]).tolist() == totals.tolist()
    assert math.isnan((totals / counts)[2].item())
    with pytest.raises(ValueError, match="num_timesteps"):
        timestep_bins(margin, timestep, num_timesteps=0)
