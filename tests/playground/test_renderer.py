from itertools import combinations, product

import numpy as np
import pytest

from mmalign.playground.captions import parse
from mmalign.playground.renderer import BACKGROUND_RGB, COLOUR_RGB, coverage, outline, render
from mmalign.playground.scene import BACKGROUNDS, COLOURS, LEVELS, RADII, SHAPES, STYLES, Thing, sample_scene


def test_every_word_has_a_colour_far_from_every_other():
    assert tuple(COLOUR_RGB) == COLOURS
    assert tuple(BACKGROUND_RGB) == BACKGROUNDS
    for colours in (COLOUR_RGB, BACKGROUND_RGB):
        for one, other in combinations(colours.values(), 2):
            assert np.linalg.norm(np.subtract(one, other)) > 65
    for one, other in product(COLOUR_RGB.values(), BACKGROUND_RGB.values()):
        assert np.linalg.norm(np.subtract(one, other)) > 110


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [32, 64, 100])
def test_renders_are_pictures_and_the_same_every_time(level: str, size: int):
    scene = sample_scene(np.random.default_rng(1), level)
    picture = render(scene, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, render(scene, size))
    assert tuple(picture[0, 0]) == BACKGROUND_RGB[scene.background]


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 1.8**2), ("triangle", 2.1 * 1.85 / 2)])
def test_solid_areas_are_those_of_geometry(shape: str, area: float):
    cover = coverage(Thing(shape, "red", "large"), "solid", 128)[2]
    assert cover.sum() / (RADII["large"] * 128) ** 2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_styles_differ_as_described(shape: str):
    solid, hollow, striped = (coverage(Thing(shape, "red", "large"), style, 64)[2] for style in STYLES)
    assert hollow.sum() < 0.8 * solid.sum()
    assert 0.5 * solid.sum() < striped.sum() < 0.85 * solid.sum()
    # A striped thing keeps its silhouette.
    np.testing.assert_array_equal(striped[solid == 1] > 0.3, True)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_upright_and_fill_the_unit_square(shape: str):
    corners = outline(shape)
    np.testing.assert_allclose(corners[:, 0].max(), -corners[:, 0].min(), atol=0.01)
    assert 0.85 < np.abs(corners).max() < 1.15


def test_a_scene_can_be_painted_from_its_caption():
    picture = render(parse("a large solid red circle on a white background"), 64)
    assert tuple(picture[32, 32]) == COLOUR_RGB["red"]
    assert tuple(picture[2, 2]) == BACKGROUND_RGB["white"]


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="style 'dotted' is unknown; choose one of solid"):
        coverage(Thing("circle", "red", "large"), "dotted", 64)
    with pytest.raises(ValueError, match="shape 'blob' is unknown; choose one of circle"):
        outline("blob")
