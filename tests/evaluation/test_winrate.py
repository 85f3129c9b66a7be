"""Win rates and differences: counted by hand, reproducible, and intervals that cover what they claim to."""

import numpy as np
import pytest

from mmalign.evaluation.winrate import mean_difference, paired_win_rate, resampled_means


def test_wins_ties_and_losses_are_counted_by_hand():
    result = paired_win_rate([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], [[1.0, 1.0], [0.75, 0.25], [1.0, 1.0]])
    assert (result.wins, result.ties, result.losses, result.n_prompts) == (3, 2, 1, 3)
    assert result.rate == pytest.approx((3 + 2 / 2) / 6)
    assert result.low <= result.rate <= result.high


def test_a_model_against_itself_is_one_half_and_swapping_sides_mirrors_the_rate():
    rng = np.random.default_rng(1)
    base, aligned = rng.integers(0, 4, (40, 3)) / 3, rng.integers(0, 4, (40, 3)) / 3
    same = paired_win_rate(base, base)
    assert (same.rate, same.low, same.high, same.ties) == (0.5, 0.5, 0.5, 120)
    one, other = paired_win_rate(base, aligned), paired_win_rate(aligned, base)
    assert one.rate == pytest.approx(1 - other.rate)
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert one.low == pytest.approx(1 - other.high)


def test_two_prompts_bootstrap_has_the_binomial_distribution():
    # One prompt won, one lost: resampled rates are 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so 95 % spans all of [0, 1].
    result = paired_win_rate([[0.0], [1.0]], [[1.0], [0.0]])
    assert (result.rate, result.low, result.high) == (0.5, 0.0, 1.0)
    means = resampled_means(np.array([1.0, 0.0]), bootstrap=20000, seed=0)
    assert [np.mean(means == value) for value in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_the_interval_is_the_seed_s_alone():
    rng = np.random.default_rng(0)
    base, aligned = rng.normal(size=(2, 50, 2))
    assert paired_win_rate(base, aligned, seed=3) == paired_win_rate(base, aligned, seed=3)
    assert mean_difference(base, aligned, seed=3) != mean_difference(base, aligned, seed=4)
    assert mean_difference(base, aligned, seed=3) == mean_difference(base, aligned, seed=3)


def test_mean_difference_by_hand():
    result = mean_difference([[0, 1], [0, 0], [1, 1]], [[1, 1], [0, 0], [1, 1]])
    assert (result.base.value, result.aligned.value) == pytest.approx((0.5, 4 / 6))
    assert result.difference.value == pytest.approx(1 / 6)
    # Only the first prompt differs, by 1/2: it is drawn 0 to 3 times of three, three times with chance 1/27 > 2.5 %.
    assert (result.difference.low, result.difference.high) == pytest.approx((0.0, 3 / 6))
    assert result.n_prompts == 3


def test_the_paired_interval_ignores_what_both_sides_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=(60, 1)) * 10
    result = mean_difference(difficulty, difficulty + 1)
    assert (result.difference.low, result.difference.high) == pytest.approx((1.0, 1.0))
    assert result.base.high - result.base.low > 3


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_interval_covers_the_truth_95_times_in_100(seeds):
    # Seeds of one prompt share an effect, so resampling pictures instead of prompts would cover far less often.
    rng, truth, hits, runs = np.random.default_rng(7), 0.3, 0, 600
    for run in range(runs):
        effect = rng.normal(truth, 1.0, (80, 1)) + rng.normal(0, 0.3, (80, seeds))
        result = mean_difference(np.zeros_like(effect), effect, bootstrap=400, seed=run)
        hits += result.difference.low <= truth <= result.difference.high
    assert 0.92 <= hits / runs <= 0.975


def test_win_rate_interval_covers_with_clusters_and_ties():
    rng, hits, runs = np.random.default_rng(11), 0, 600
    for run in range(runs):
        chance = rng.beta(3, 2, (100, 1))  # mean 0.6: each prompt has its own chance to be won
        tied = rng.random((100, 3)) < 0.3
        won = rng.random((100, 3)) < chance
        aligned = np.where(tied, 0.0, np.where(won, 1.0, -1.0))
        result = paired_win_rate(np.zeros_like(aligned), aligned, bootstrap=400, seed=run)
        truth = 0.7 * 0.6 + 0.3 * 0.5
        hits += result.low <= truth <= result.high
    assert 0.92 <= hits / runs <= 0.975


@pytest.mark.parametrize(
    ("base", "aligned", "message"),
    [
        ([[1.0], [2.0]], [[1.0, 2.0], [2.0, 3.0]], r"got shapes \[2, 1\] and \[2, 2\]"),
        ([1.0, 2.0], [1.0, 2.0], r"\[prompts, seeds\]"),
        ([[1.0]], [[2.0]], "at least 2 prompts, got 1"),
        ([[1.0], [2.0]], [[1.0], [float("nan")]], "aligned value of prompt 1, seed 0 is nan"),
    ],
)
def test_bad_scores_are_refused_by_name(base, aligned, message):
    with pytest.raises(ValueError, match=message):
        paired_win_rate(base, aligned)


def test_a_handful_of_resamples_is_refused():
    with pytest.raises(ValueError, match="at least 100 resamples, got 10"):
        paired_win_rate([[0.0], [1.0]], [[1.0], [1.0]], bootstrap=10)
