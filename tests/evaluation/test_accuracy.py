"""Accuracy rules on hand-made groups whose values follow from the published code, which is named at each rule.

G1: ranks of people 1, 1, 2, 3 (lower is better), scores 5, 4, 4, 6. Pairs (i, j), people's and the model's verdict:
01 tie, model 0 | 02 people 0, model 0 | 03 people 0, model 3 | 12 people 1, model tie | 13 people 1, model 3 |
23 people 2, model 3. So five decided pairs: one right (02), one model tie (12), three wrong.
G2: ranks 1, 2, scores 1, 0: one pair, right.
"""

import math

import numpy as np
import pytest

from mmalign.evaluation.accuracy import RULES, best_threshold, pairwise_accuracy
from mmalign.evaluation.judged import Judged

G1 = Judged("a cat", (-1, -1, -2, -3), (5, 4, 4, 6))
G2 = Judged("a dog", (-1, -2), (1, 0))
ALL_TIED = Judged("a cow", (0, 0), (1, 0))

EXPECTED = {
    # micro, human ties left out, a model tie is half: (1 + 0.5 + 1) / 6
    "mmalign": 2.5 / 6,
    # ImageReward test.py: tol_cnt 6, true_cnt only for a strict agreement: (1 + 1) / 6
    "imagereward": 2 / 6,
    # calc_ImageReward is that per prompt (its outer loop repeats the same pairs, which cancels): mean of 1/5 and 1/1
    "hpsv2_imagereward": (1 / 5 + 1) / 2,
    # inversion_score: 1 - inversions / 6. argsort(-scores) of G1 is 3, 0, 1, 2, so ranks are 1, 2, 3, 0: inversions
    # are 03, 13, 23; the human tie 01 and the model tie 12 (1 before 2) are none.
    "hpdv2": (1 - 3 / 6 + 1) / 2,
    # path1 preferred, equal is wrong
    "hpsv3": 2 / 6,
    # Acc. w/o tie: ties are skipped
    "genai_bench": 2 / 6,
    # Acc.: a tie stays in num_all and is never correct: 2 right of 6 + 1
    "genai_bench_with_ties": 2 / 7,
}


@pytest.mark.parametrize("rule", sorted(EXPECTED))
def test_each_rule_gives_what_its_code_gives(rule):
    found = pairwise_accuracy([G1, G2], rule, bootstrap=100)
    assert found.value == pytest.approx(EXPECTED[rule], abs=1e-12)
    assert (found.n_human_ties, found.n_model_ties) == (1, 1)
    assert found.n_pairs == (7 if rule in ("hpdv2", "genai_bench_with_ties") else 6)


def test_every_rule_is_pinned():
    assert {*EXPECTED, "pickapic"} == set(RULES)


def official_pickapic(rows, threshold):
    """eval_preference_predictor.py:66-117 retyped: labels "0", "1" or "tie"; 1 for equal, 1/2 where one says tie."""
    total = 0.0
    for label, (s0, s1) in rows:
        p0 = math.exp(s0) / (math.exp(s0) + math.exp(s1))
        said = "tie" if abs(1 - 2 * p0) <= threshold else "0" if p0 > 0.5 else "1"
        total += 1.0 if said == label else 0.5 if "tie" in (said, label) else 0.0
    return total / len(rows)


LABELS = {"0": (1, 0), "1": (0, 1), "tie": (0, 0)}
ROWS = [
    ("0", (1.0, 0.0)),
    ("1", (2.0, 0.0)),
    ("tie", (0.3, 0.2)),
    ("tie", (3.0, 0.0)),
    ("0", (0.1, 0.3)),
    ("1", (0, 2)),
]


def pickapic_groups(rows):
    return [Judged(f"p{i}", LABELS[label], scores) for i, (label, scores) in enumerate(rows)]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_pickapic_is_three_way_with_half_credit(threshold):
    found = pairwise_accuracy(pickapic_groups(ROWS), "pickapic", threshold=threshold, bootstrap=100)
    assert found.value == pytest.approx(official_pickapic(ROWS, threshold), abs=1e-12)


def test_pickapic_by_hand():
    # threshold 0.1: |p0 - p1| = tanh(gap / 2) = .462, .762, .050, .905, .100 (0.0997), .762
    # right 1; wrong 0; both tie 1; people tie 1/2; model tie 1/2; right 1
    assert pairwise_accuracy(pickapic_groups(ROWS), "pickapic", threshold=0.1).value == pytest.approx(4 / 6)


def test_pickapic_threshold_is_the_first_best_of_eleven_on_validation():
    values = [official_pickapic(ROWS, t / 10) for t in range(11)]
    assert best_threshold(pickapic_groups(ROWS)) == pytest.approx(int(np.argmax(values)) / 10)


def test_a_threshold_is_needed_or_refused():
    with pytest.raises(ValueError, match="rule pickapic predicts ties below a threshold"):
        pairwise_accuracy([G1], "pickapic")
    with pytest.raises(ValueError, match=r"threshold=0\.2 would be ignored by rule hpdv2"):
        pairwise_accuracy([G1], "hpdv2", threshold=0.2)
    with pytest.raises(ValueError, match="no accuracy rule 'micro'; choose one of mmalign, imagereward"):
        pairwise_accuracy([G1], "micro")


def test_a_random_scorer_shows_what_the_rules_are_worth():
    rng = np.random.default_rng(0)
    groups = [Judged(f"p{i}", rng.integers(0, 4, 6), rng.normal(size=6)) for i in range(400)]
    assert pairwise_accuracy(groups, "mmalign").value == pytest.approx(0.5, abs=0.02)
    # a quarter of the pairs are human ties, all of them correct: (3/4)(1/2) + 1/4
    assert pairwise_accuracy(groups, "hpdv2").value == pytest.approx(0.625, abs=0.02)


def test_a_constant_scorer_gets_a_half_by_our_rule_and_nothing_by_imagereward():
    groups = [Judged(f"p{i}", (1, 0), (2.0, 2.0)) for i in range(5)]
    assert pairwise_accuracy(groups, "mmalign").value == 0.5
    assert pairwise_accuracy(groups, "imagereward").value == 0.0


def test_groups_all_tied_by_people_are_not_counted_and_nothing_left_is_an_error():
    found = pairwise_accuracy([G1, G2, ALL_TIED], "hpsv2_imagereward", bootstrap=100)
    assert (found.n_groups, found.n_prompts) == (2, 3)
    with pytest.raises(ValueError, match="people tied all of them"):
        pairwise_accuracy([ALL_TIED], "imagereward")


def test_the_interval_resamples_prompts_not_pairs():
    """Twenty copies of each of thirty prompts are thirty prompts: resampling pairs would be too narrow."""
    rng = np.random.default_rng(1)
    right = rng.random(30) < 0.7
    few = [Judged(f"p{i}", (1, 0), (1, 0) if ok else (0, 1)) for i, ok in enumerate(right)]
    once, many = pairwise_accuracy(few), pairwise_accuracy(few * 20)
    assert many.value == pytest.approx(once.value)
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
    sd = math.sqrt(once.value * (1 - once.value) / 30)
    assert once.high - once.low == pytest.approx(2 * 1.96 * sd, rel=0.15)


def test_one_prompt_has_no_interval():
    found = pairwise_accuracy([G1])
    assert found.low is None
    assert str(found) == "0.300"


def test_bad_groups_are_named():
    with pytest.raises(ValueError, match="row:3: 2 labels and 3 scores"):
        Judged("x", (1, 0), (1, 2, 3), sample_id="row:3")
    with pytest.raises(ValueError, match="must be finite"):
        Judged("x", (1, 0), (1, math.nan))
