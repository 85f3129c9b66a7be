import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from mmalign.playground.captions import caption, parse
from mmalign.playground.scene import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    RADII,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    arrange,
    held_out_prompts,
    is_held_out,
    sample_scene,
    training_prompts,
)


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seed_gives_the_same_scene(level: str):
    first, again = (sample_scene(np.random.default_rng(3), level) for _ in range(2))
    assert first == again
    assert first != sample_scene(np.random.default_rng(4), level)


@pytest.mark.parametrize("level", LEVELS)
def test_things_stay_inside_and_apart(level: str):
    rng = np.random.default_rng(0)
    for _ in range(200):
        things = sample_scene(rng, level, held_out=None).things
        for thing in things:
            assert 1.07 * thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        for index, one in enumerate(things):
            for other in things[:index]:
                gap = max(abs(one.x - other.x), abs(one.y - other.y)) - one.radius - other.radius
                assert gap > 0.04


def test_relations_hold_by_a_clear_margin():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, "relation")
        first, second = scene.things
        along = {
            "left of": second.x - first.x,
            "right of": first.x - second.x,
            "above": second.y - first.y,
            "below": first.y - second.y,
        }[str(scene.relation)]
        across = min(abs(first.x - second.x), abs(first.y - second.y))
        assert along > 0.35
        assert along > across


def test_sizes_are_well_apart():
    assert RADII["medium"] / RADII["small"] > 1.4
    assert RADII["large"] / RADII["medium"] > 1.4


def test_about_a_tenth_of_all_single_scenes_is_held_out_and_enough_for_evaluation():
    every = [
        Scene("single", (Thing(shape, colour, size),), background, style)
        for shape, colour, size, background, style in product(SHAPES, COLOURS, SIZES, BACKGROUNDS, STYLES)
    ]
    held_out = [scene for scene in every if is_held_out(scene)]
    assert len(every) == 2592
    assert 0.09 < len(held_out) / len(every) < 0.13
    assert len(held_out_prompts("single", 250)) == 250
    assert {caption(scene) for scene in held_out} >= set(held_out_prompts("single", 250))


@pytest.mark.parametrize("level", LEVELS)
def test_training_and_evaluation_prompts_never_meet(level: str):
    held_out, training = held_out_prompts(level, 60, seed=0), training_prompts(level, 60, seed=0)
    assert len(set(held_out)) == len(set(training)) == 60
    assert all(is_held_out(prompt) for prompt in held_out)
    assert not any(is_held_out(prompt) for prompt in training)
    assert held_out != held_out_prompts(level, 60, seed=1)


def test_held_out_is_the_same_in_another_process():
    prompts = training_prompts("single", 20) + held_out_prompts("single", 20)
    program = (
        "import sys; from mmalign.playground.scene import is_held_out; "
        "print(''.join(str(int(is_held_out(line))) for line in sys.argv[1:]))"
    )
    answer = subprocess.run([sys.executable, "-c", program, *prompts], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "0" * 20 + "1" * 20


def test_held_out_ignores_the_order_in_which_a_picture_is_told():
    rng = np.random.default_rng(0)
    for level in ("pair", "relation"):
        answers = set()
        for _ in range(100):
            scene = sample_scene(rng, level, held_out=None)
            mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
            relation = None if scene.relation is None else mirrored[scene.relation]
            told_backwards = Scene(level, scene.things[::-1], scene.background, scene.style, relation)
            assert is_held_out(scene) == is_held_out(told_backwards)
            answers.add(is_held_out(scene))
        assert answers == {True, False}


def test_arranging_changes_positions_only():
    scene = parse("a solid red circle left of a solid blue star on a grey background")
    moved = arrange(scene, np.random.default_rng(0))
    assert moved.attributes == scene.attributes
    assert moved.things[0].x != scene.things[0].x


def test_mistakes_name_what_is_allowed():
    with pytest.raises(ValueError, match="'double' is unknown; choose one of single, pair"):
        sample_scene(np.random.default_rng(0), "double")
    with pytest.raises(ValueError, match="ask for fewer than 5000"):
        held_out_prompts("single", 5000)
