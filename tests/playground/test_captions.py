import re

import numpy as np
import pytest

from mmalign.playground.captions import TEMPLATES, caption, parse, words
from mmalign.playground.scene import LEVELS, sample_scene


@pytest.mark.parametrize("level", LEVELS)
def test_parse_inverts_every_template(level: str):
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng, level, held_out=None)
        assert parse(caption(scene, rng)).attributes == scene.attributes
        assert caption(parse(caption(scene, rng))) == caption(scene)


def test_every_template_is_used():
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    assert len({caption(scene, rng) for _ in range(100)}) == len(TEMPLATES)
    assert caption(scene) == caption(scene)


@pytest.mark.parametrize("level", LEVELS)
def test_captions_are_short_and_speak_only_known_words(level: str):
    rng = np.random.default_rng(0)
    known = set(words())
    for _ in range(200):
        spoken = caption(sample_scene(rng, level, held_out=None), rng).split()
        assert len(spoken) + 2 <= 24
        assert known.issuperset(spoken)


def test_a_caption_means_what_it_says():
    scene = parse("  A picture of a large striped red CIRCLE on a white background. ")
    assert scene.attributes == ("single", (("circle", "red", "large"),), "white", "striped", None)
    scene = parse("a navy background with a hollow pink cross above a hollow cyan heart")
    assert [(thing.shape, thing.colour) for thing in scene.things] == [("cross", "pink"), ("heart", "cyan")]
    assert (scene.level, scene.background, scene.style, scene.relation) == ("relation", "navy", "hollow", "above")
    scene = parse("four solid orange crosses in front of a black background")
    assert (scene.level, len(scene.things), scene.things[0].shape) == ("count", 4, "cross")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a large mauve dog on a white background", "unknown words: mauve, dog"),
        ("red circle", "the words are known, their order is not"),
        ("a solid red circle and a hollow blue star on a white background", "Several things share one style"),
        ("a solid red circle above a solid blue star above a solid pink star on a white background", "cannot read"),
        ("", "cannot read the caption ''"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, problem: str):
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        parse(text)
    assert "colours: red, orange" in str(error.value)
