"""The reader of made-up descriptions: right, wrong, invented, repeated and unknown things, told apart by gold."""

import numpy as np
import pytest

from mmalign.playground.captions import parse
from mmalign.playground.descriptions import Phrase, judge_description, read_description
from mmalign.playground.habits import LEVEL_SHARES, sample_with_habits
from mmalign.playground.questions import describe
from mmalign.playground.scene import COLOURS, SHAPES, STYLES

PAIR = parse("a solid red circle left of a solid blue star on a navy background")


@pytest.mark.parametrize("level", LEVEL_SHARES)
def test_gold_descriptions_claim_only_what_holds_and_leave_nothing_out(level: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = sample_with_habits(rng, level, follow=0.3, held_out=None)
        verdict = judge_description(describe(scene), scene)
        assert verdict.wrong == ()
        assert verdict.recall == 1
        assert not verdict.description.unknown
        assert not verdict.description.loose
        assert verdict.description.repeats == 0


def test_each_wrong_word_is_one_wrong_claim() -> None:
    verdict = judge_description("a solid green circle right of a solid blue heart on a grey background", PAIR)
    assert {(claim.kind, claim.value) for claim in verdict.wrong} == {
        ("colour", "green"), ("relation", "right of"), ("shape", "heart"), ("background", "grey"),
    }  # fmt: skip
    assert len(verdict.claims) == 8
    assert verdict.recall == 4 / 8


def test_the_order_of_things_does_not_matter_and_a_turned_relation_holds() -> None:
    assert not judge_description("a solid blue star right of a solid red circle on a navy background", PAIR).wrong
    assert not judge_description("a navy background with a blue star and a red circle", PAIR).wrong


def test_a_thing_too_many_is_invented_with_all_that_is_said_of_it() -> None:
    verdict = judge_description("a red circle and a blue star and a small red heart", PAIR)
    assert [(claim.kind, claim.value) for claim in verdict.wrong] == [
        ("shape", "heart"), ("colour", "red"), ("size", "small"),
    ]  # fmt: skip


def test_repeats_are_counted_and_neither_right_nor_wrong() -> None:
    once = judge_description("a red circle and a blue star", PAIR)
    often = judge_description("a red circle and a blue star and a red circle and a red circle", PAIR)
    assert (often.claims, often.recall) == (once.claims, once.recall)
    assert often.description.repeats == 2


def test_unknown_words_and_loose_attributes_are_counted() -> None:
    said = read_description("A furry red dog, large and blue, on a navy background!")
    assert said.unknown == ("furry", "dog")
    assert said.loose == ("red", "large", "blue")
    assert said.backgrounds == ("navy",)
    assert said.phrases == ()
    assert said.n_words == 11


def test_saying_nothing_is_no_hallucination_but_recalls_nothing() -> None:
    for text in ("", "the the the", "42"):
        verdict = judge_description(text, PAIR)
        assert not verdict.hallucinates
        assert verdict.recall == 0


def test_numbers_are_claims_and_articles_are_not() -> None:
    three = parse("three hollow green squares on a cream background")
    assert read_description("three hollow green squares").phrases == (Phrase("square", "green", "hollow", None, 3),)
    two = judge_description("two hollow green squares on a cream background", three)
    assert [claim.kind for claim in two.wrong] == ["count"]
    one = judge_description("a hollow green square on a cream background", three)
    assert not one.wrong
    assert one.recall == 4 / 5
    assert [claim.kind for claim in judge_description("two red circles", PAIR).wrong] == ["count"]


def test_a_background_in_a_colour_of_things_is_wrong() -> None:
    assert [claim.value for claim in judge_description("a red circle on a blue background", PAIR).wrong] == ["blue"]


def test_two_colours_of_one_thing_leave_one_loose() -> None:
    said = read_description("a red blue circle")
    assert said.phrases == (Phrase("circle", "red"),)
    assert said.loose == ("blue",)


def test_a_long_babble_is_read_in_no_time() -> None:
    text = " and ".join(f"a {style} {colour} {shape}" for style in STYLES for colour in COLOURS for shape in SHAPES)
    verdict = judge_description(text, PAIR)
    assert len(verdict.claims) == 3 * len(STYLES) * len(COLOURS) * len(SHAPES)
    assert len(verdict.claims) - len(verdict.wrong) == 6
