"""The world with habits: they hold as often as they should, and not at all where they should not."""

import numpy as np
import pytest

from mmalign.playground.habits import (
    COLOUR_OF,
    LEVEL_SHARES,
    PARTNER_OF,
    broken_habits,
    co_occurrence,
    expected,
    sample_with_habits,
    with_attribute,
)
from mmalign.playground.renderer import render
from mmalign.playground.scene import SHAPES, is_held_out


@pytest.mark.parametrize("level", LEVEL_SHARES)
def test_all_habits_hold_with_follow_1(level: str) -> None:
    rng = np.random.default_rng(0)
    assert all(not broken_habits(sample_with_habits(rng, level, follow=1, held_out=None)) for _ in range(50))


def test_without_habits_a_colour_tells_nothing_about_the_shape() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_with_habits(rng, "single", follow=0, held_out=None) for _ in range(2000)]
    usual = np.mean([COLOUR_OF[scene.things[0].shape] == scene.things[0].colour for scene in scenes])
    assert usual == pytest.approx(1 / 8, abs=0.03)
    assert {scene.things[0].shape for scene in scenes} == set(SHAPES)


def test_each_habit_holds_with_the_probability_asked_for() -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_with_habits(rng, "relation", follow=0.6, held_out=None) for _ in range(1500)]
    holds = np.mean([PARTNER_OF[s.things[0].shape] == s.things[1].shape for s in scenes])
    assert holds == pytest.approx(0.6 + 0.4 / 5, abs=0.04)
    background = np.mean(["background" not in broken_habits(scene) for scene in scenes])
    assert background == pytest.approx(0.6 + 0.4 / 6, abs=0.04)


def test_things_are_in_reading_order() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        trio = sample_with_habits(rng, "trio", follow=0.5, held_out=None)
        places = [(thing.y > 0.5, thing.x) for thing in trio.things]
        assert places == sorted(places)
        pair = sample_with_habits(rng, "relation", follow=0.5, held_out=None)
        assert pair.relation in ("left of", "above")


def test_held_out_combinations_stay_apart_and_an_impossible_wish_is_an_error() -> None:
    rng = np.random.default_rng(3)
    assert all(is_held_out(sample_with_habits(rng, follow=0, held_out=True)) for _ in range(30))
    assert not any(is_held_out(sample_with_habits(rng, follow=0.9)) for _ in range(30))
    with pytest.raises(ValueError, match="pass held_out=None"):
        [sample_with_habits(rng, "single", follow=1, held_out=True) for _ in range(40)]
    with pytest.raises(ValueError, match="pair"):
        sample_with_habits(rng, "pair", follow=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        sample_with_habits(rng, follow=1.5)


def test_an_attribute_set_as_a_habit_has_it_is_no_longer_broken_and_renders() -> None:
    rng = np.random.default_rng(4)
    changed = 0
    for _ in range(50):
        scene = sample_with_habits(rng, follow=0.2, held_out=None)
        for name in broken_habits(scene):
            other = with_attribute(scene, name, expected(scene)[name])
            if other is not None:
                changed += 1
                assert name not in broken_habits(other)
                assert not np.array_equal(render(other), render(scene))
    assert changed > 50


def test_co_occurrence_counts_pictures() -> None:
    together = co_occurrence(scenes=500)
    assert together["circle"]["star"] == together["star"]["circle"] > together["circle"]["cross"]
    assert all(together[shape][shape] == max(together[shape].values()) for shape in SHAPES)
