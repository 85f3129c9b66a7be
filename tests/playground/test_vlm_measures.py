"""The measures of made-up things, on speakers whose every answer is known: one by gold, one by habit, one silent."""

import json

import pytest

from mmalign.evaluation.vlm_playground import Said, compare, judge
from mmalign.playground.habits import COLOUR_OF
from mmalign.playground.looking import Look, looks
from mmalign.playground.questions import describe


@pytest.fixture(scope="module")
def shown() -> list[Look]:
    return looks(40, seed=0)


def by_gold(shown: list[Look]) -> Said:
    answers = tuple(tuple(question.answer for question in look.questions) for look in shown)
    existence = tuple({"present": "yes", **dict.fromkeys(look.absent, "no")} for look in shown)
    silent = tuple(tuple("" for _ in look.questions) for look in shown)
    return Said(tuple(describe(look.scene) for look in shown), answers, silent, existence)


def by_habit(shown: list[Look]) -> Said:
    """Says of every shape that it has its usual colour, and yes to everything."""
    shape_of = [look.scene.things[0].shape for look in shown]
    answers = tuple(tuple("yes" for _ in look.questions) for look in shown)
    return Said(
        tuple(f"a {COLOUR_OF[shape]} {shape}" for shape in shape_of),
        answers,
        answers,
        tuple(dict.fromkeys(("present", *look.absent), "Yes.") for look in shown),
    )


def test_gold_makes_nothing_up(shown: list[Look]) -> None:
    measures = judge(shown, by_gold(shown))
    assert measures["hallucination_rate"] == measures["wrong_claims"] == measures["unknown_words"] == 0
    assert measures["attribute_recall"] == measures["object_recall"] == measures["accuracy"] == 1
    assert (measures["accuracy_blank"], measures["prior_gap"]) == (0, 1)
    assert measures["pope_random"] == measures["pope_popular"] == measures["pope_adversarial"] == 1
    assert measures["yes_ratio"] == 0.5


def test_habit_is_caught_at_what_it_makes_up(shown: list[Look]) -> None:
    measures = judge(shown, by_habit(shown))
    usual = [COLOUR_OF[look.scene.things[0].shape] == look.scene.things[0].colour for look in shown]
    wrong = usual.count(False)
    assert measures["hallucination_rate"] == wrong / 40
    assert measures["wrong_claims"] == wrong / 80
    assert measures["wrong_objects"] == 0
    assert measures["wrong_colour"] == wrong / 40
    assert measures["yes_ratio"] == 1
    assert measures["pope_adversarial"] == 0.5
    assert measures["prior_gap"] == 0
    assert measures["words"] == 3
    assert "wrong_background" not in measures.ratios


def test_a_comparison_is_paired_and_says_what_changed(shown: list[Look]) -> None:
    base, aligned = judge(shown, by_habit(shown)), judge(shown, by_gold(shown))
    comparison = compare(base, aligned, bootstrap=200)
    change = comparison.measures["hallucination_rate"]
    assert change.base.value == base["hallucination_rate"]
    assert change.difference.value == -base["hallucination_rate"]
    assert change.difference.low <= change.difference.value <= change.difference.high < 0
    assert comparison.summary().startswith(f"hallucination rate {base['hallucination_rate']:.3f} -> 0.000 (-")
    assert "over 40 pictures" in comparison.summary()
    assert json.loads(comparison.to_json())["measures"]["accuracy"]["aligned"]["value"] == 1
    none = compare(base, base, bootstrap=200).measures["wrong_claims"].difference
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert compare(base, aligned, bootstrap=200) == comparison


def test_sides_that_saw_other_pictures_are_refused(shown: list[Look]) -> None:
    few = judge(shown[:10], by_gold(shown[:10]))
    with pytest.raises(ValueError, match="show both the same"):
        compare(few, judge(shown, by_gold(shown)))
    with pytest.raises(ValueError, match="40 pictures, but 10 descriptions"):
        judge(shown, by_gold(shown[:10]))
