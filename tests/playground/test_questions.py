"""Questions about scenes: gold answers, ways of asking for what is not there, and reading answers."""

import numpy as np
import pytest

from mmalign.playground.captions import parse
from mmalign.playground.habits import LEVEL_SHARES, co_occurrence, sample_with_habits
from mmalign.playground.looking import blank, looks
from mmalign.playground.questions import KINDS, NEGATIVES, absent_shape, ask, existence, kinds_of, read_answer, words
from mmalign.playground.scene import SHAPES

PAIR = parse("a solid red circle left of a solid blue star on a navy background")


def test_gold_answers_of_a_known_scene() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for kind in kinds_of(PAIR):
        for _ in range(20):
            question = ask(PAIR, kind, rng)
            found[question.text] = question.answer
    assert found["what colour is the star ?"] == "blue"
    assert found["what shape is the red thing ?"] == "circle"
    assert found["what pattern does it have ?"] == "solid"
    assert found["what colour is the background ?"] == "navy"
    assert found["how many things are there ?"] == "two"
    assert found["where is the star seen from the circle ?"] == "right"
    assert found["is the circle left of the star ?"] == "yes"
    assert found["is the star left of the circle ?"] == "no"
    assert found["is there a circle ?"] == "yes"
    assert found["is the star blue ?"] == "yes"
    assert {answer for text, answer in found.items() if text.startswith("is the star ") and "blue" not in text
            and " of " not in text} == {"no"}  # fmt: skip


def test_every_kind_is_asked_somewhere_and_every_word_is_known() -> None:
    rng, asked, known = np.random.default_rng(1), set(), set(words())
    for level in LEVEL_SHARES:
        for _ in range(10):
            scene = sample_with_habits(rng, level, follow=0.5, held_out=None)
            for kind in kinds_of(scene):
                question = ask(scene, kind, rng)
                asked.add(kind)
                assert set(question.text.split()) | {question.answer} <= known
    assert asked == set(KINDS)
    with pytest.raises(ValueError, match="answers no question of kind 'size'"):
        ask(PAIR, "size", rng)


def test_the_share_of_true_claims_is_as_asked() -> None:
    rng = np.random.default_rng(2)
    answers = [ask(PAIR, "attribute", rng, yes_share=0.8).answer for _ in range(500)]
    assert np.mean([answer == "yes" for answer in answers]) == pytest.approx(0.8, abs=0.05)


def test_absent_shapes_are_absent_and_the_adversarial_ones_are_what_habit_expects() -> None:
    rng = np.random.default_rng(3)
    circle = parse("a large solid red circle on a white background")
    assert absent_shape(circle, "adversarial", rng) == "star"
    together = co_occurrence()
    assert absent_shape(circle, "popular", rng) == max(
        (shape for shape in SHAPES if shape != "circle"), key=lambda shape: together[shape][shape]
    )
    for negatives in NEGATIVES:
        question = existence(absent_shape(PAIR, negatives, rng), PAIR)
        assert question.answer == "no"
    with pytest.raises(ValueError, match="adversarial"):
        absent_shape(PAIR, "rare", rng)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer"), [("Yes.", "yes"), ("no!", "no"), ("  Red", "red"), ("", ""), ("?!", ""), ("not sure", "not")]
)
def test_answers_are_read_by_their_first_word(text: str, answer: str) -> None:
    assert read_answer(text) == answer


def test_looks_are_the_same_for_the_same_seed_and_balanced() -> None:
    first, again, other = looks(12, seed=1), looks(12, seed=1), looks(12, seed=2)
    assert [look.scene for look in first] == [look.scene for look in again] != [look.scene for look in other]
    assert [look.questions for look in first] == [look.questions for look in again]
    assert {look.present.answer for look in first} == {"yes"}
    assert {question.answer for look in first for question in look.absent.values()} == {"no"}
    assert len({(blank(look.image).getcolors() or [])[0] for look in first}) == 1
