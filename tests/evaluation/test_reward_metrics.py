"""Ranking metrics against brute force, calibration against a known temperature, probes against known biases."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from mmalign.evaluation.calibration import calibration, fit_temperature, reliability
from mmalign.evaluation.judged import Judged
from mmalign.evaluation.probes import dimension_probes, rated_dimensions
from mmalign.evaluation.rankings import expected_best_of, kendall_tau_b, ndcg, ranking_metrics
from mmalign.evaluation.reward import evaluate_reward
from mmalign.rewards import find_reward
from mmalign.rewards.statistic import STATISTICS, picture_statistics


def test_tau_b_by_hand():
    # pairs: 01 human tie; 02 concordant; 03 discordant; 12 model tie; 13, 23 discordant: (1 - 3) / sqrt(5 * 5)
    assert kendall_tau_b((-1, -1, -2, -3), (5, 4, 4, 6)) == pytest.approx(-2 / 5)
    assert kendall_tau_b((1, 2, 3), (1, 2, 3)) == 1
    assert kendall_tau_b((3, 2, 1), (1, 2, 3)) == -1
    assert kendall_tau_b((1, 1), (1, 2)) is None


@pytest.mark.parametrize("scores", [(3, 1, 2, 0), (1, 1, 2, 0), (1, 1, 1, 1)])
def test_ndcg_is_the_mean_over_the_orders_of_tied_scores(scores):
    gains = (2.0, 0.0, 1.0, 3.0)
    discounts = 1 / np.log2(np.arange(4) + 2)
    dcgs = []
    for noise in itertools.permutations(range(4)):  # every way of breaking ties
        order = sorted(range(4), key=lambda i: (-scores[i], noise[i]))
        dcgs.append(sum(gains[i] * d for i, d in zip(order, discounts, strict=True)))
    ideal = sum(g * d for g, d in zip(sorted(gains, reverse=True), discounts, strict=True))
    assert ndcg([g - 7 for g in gains], scores) == pytest.approx(np.mean(dcgs) / ideal)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("scores", [(5, 1, 3, 2, 4), (2, 2, 1, 1, 1)])
def test_best_of_n_is_the_mean_over_all_draws(n, scores):
    values = (0.3, -1.0, 2.0, 0.0, 0.7)
    expected = []
    for drawn in itertools.combinations(range(5), n):
        top = max(scores[i] for i in drawn)
        expected.append(np.mean([values[i] for i in drawn if scores[i] == top]))
    assert expected_best_of(values, scores, n) == pytest.approx(np.mean(expected))


def test_best_of_n_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="n=3: the best of n is drawn from 2 pictures"):
        expected_best_of((1, 2), (1, 2), 3)


def test_a_perfect_reward_has_no_regret_and_a_reversed_one_all_of_it():
    rng = np.random.default_rng(0)
    labels = [tuple(rng.normal(size=4)) for _ in range(20)]
    perfect = ranking_metrics([Judged(f"p{i}", of, of) for i, of in enumerate(labels)])
    assert [one.regret for one in perfect.best_of] == pytest.approx([0] * 4)
    assert perfect.best_of[3].captured == pytest.approx(1)
    reversed_ = ranking_metrics([Judged(f"p{i}", of, [-v for v in of]) for i, of in enumerate(labels)])
    assert reversed_.best_of[3].picked.value == pytest.approx(np.mean([min(of) for of in labels]))
    assert reversed_.tau_b.value == pytest.approx(-1)


def test_best_of_n_counts_only_groups_that_are_large_enough():
    metrics = ranking_metrics([Judged("a", (1, 2), (1, 2)), Judged("b", (1, 2, 3), (1, 2, 3))])
    assert [one.n_groups for one in metrics.best_of] == [2, 2, 1]


def simulated(true_temperature, pairs, seed=0):
    rng = np.random.default_rng(seed)
    gaps = rng.normal(scale=2, size=pairs)
    wins = rng.random(pairs) < 1 / (1 + np.exp(-gaps / true_temperature))
    return [Judged(f"p{i}", (1, 0) if w else (0, 1), (g, 0)) for i, (g, w) in enumerate(zip(gaps, wins, strict=True))]


def test_the_temperature_that_made_the_choices_is_found():
    found = calibration(simulated(2.5, 6000))
    assert found.fitted.temperature == pytest.approx(2.5, rel=0.08)
    assert found.fitted.ece < 0.02 < found.as_given.ece
    assert found.fitted.log_loss < found.as_given.log_loss
    assert found.held_out.log_loss == pytest.approx(found.fitted.log_loss, abs=2e-3)
    assert found.note is None


def test_reliability_by_hand():
    gap = math.log(3)  # p = 0.75
    found = reliability(np.array([gap, gap, -gap, 0.0]), np.array([1.0, 0.0, 0.5, 1.0]))
    # favoured side right: 1, 0, 0.5, and a half where none is favoured; bins: three at 0.75, one at 0.5
    assert found.ece == pytest.approx(3 / 4 * abs(0.5 - 0.75))
    assert found.brier == pytest.approx((0.25**2 + 0.75**2 + 0.25**2 + 0.5**2) / 4)
    assert [one.pairs for one in found.bins] == [1, 3]


def test_temperatures_that_mean_nothing_are_said_so():
    assert "no better than chance" in fit_temperature(np.array([1.0, -1.0]), np.array([0.0, 1.0]))[1]
    assert "never wrong" in fit_temperature(np.array([1.0, -1.0]), np.array([1.0, 0.0]))[1]
    assert "all scores are tied" in fit_temperature(np.zeros(3), np.ones(3))[1]


def test_soft_labels_reach_calibration():
    exact = [Judged(f"p{i}", (1, 0), (math.log(3), 0), preference=0.75) for i in range(6)]
    assert calibration(exact).fitted.temperature == pytest.approx(1, rel=1e-4)


def test_probes_tell_what_a_reward_follows():
    rng = np.random.default_rng(0)
    groups = []
    for i in range(60):
        saturation, quality = rng.normal(size=3), rng.normal(size=3)
        groups.append(Judged(f"p{i}", quality, saturation, dimensions={"saturation": saturation, "quality": quality}))
    by_name = {probe.name: probe for probe in dimension_probes(groups)}
    assert by_name["saturation"].reward.value == 1
    assert by_name["saturation"].tau_b == 1
    assert by_name["saturation"].people.value == pytest.approx(0.5, abs=0.12)
    assert by_name["quality"].people.value == 1
    assert by_name["quality"].reward.value == pytest.approx(0.5, abs=0.12)


def test_picture_statistics_by_hand():
    half = Image.new("RGB", (2, 1), "white")
    half.putpixel((0, 0), (0, 0, 0))
    assert picture_statistics(half) == pytest.approx(
        {"saturation": 0, "contrast": 0.5, "sharpness": 1.0, "brightness": 0.5}
    )
    assert picture_statistics(Image.new("RGB", (3, 3), (255, 0, 0)))["saturation"] == 1
    pictures = [half, Image.new("RGB", (3, 3), (255, 0, 0))]
    for name in STATISTICS:
        reward = find_reward(name)
        assert reward.name == name
        assert reward.score(["a", "b"], pictures).tolist() == pytest.approx(
            [picture_statistics(p)[name] for p in pictures]
        )
    with pytest.raises(ValueError, match="reward 'saturation' takes no device"):
        find_reward("saturation", device="cpu")


def test_ratings_are_extras_with_a_number_for_each_picture():
    extras = {"fidelity_rating": [5, 6.5], "missing": [5, None], "models": ["a", "b"], "flags": [True, False], "n": 2}
    assert rated_dimensions(extras, 2) == {"fidelity_rating": [5.0, 6.5]}


def test_an_evaluation_without_a_threshold_says_that_pickapic_is_left_out():
    found = evaluate_reward(simulated(1, 30), reward="r", bootstrap=100)
    assert found.accuracies[0].rule == "mmalign"
    assert "pickapic" not in [one.rule for one in found.accuracies]
    assert "Rule pickapic is left out" in found.notes[0]
    with_it = evaluate_reward(simulated(1, 30), reward="r", threshold=0.1, temperature=2.0, bootstrap=100)
    three_way = next(one for one in with_it.accuracies if one.rule == "pickapic")
    assert three_way.threshold == 0.1
    assert with_it.calibration.as_given.temperature == 2.0
