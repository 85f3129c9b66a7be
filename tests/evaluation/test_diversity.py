"""Diversity on pictures whose distances are known in closed form."""

import numpy as np
import pytest
from PIL import Image

from mmalign.evaluation.diversity import (
    colour_distances,
    embedding_distances,
    measure_diversity,
    pairwise_difference,
    pixel_distances,
)


def flat(*rgb):
    return Image.new("RGB", (64, 64), rgb)


def halves(left, right):
    picture = Image.new("RGB", (64, 64), left)
    picture.paste(right, (32, 0, 64, 64))
    return picture


def test_pixel_distance_is_rms_in_unit_range():
    distances = pixel_distances([flat(0, 0, 0), flat(255, 255, 255), flat(255, 0, 0)])
    assert distances[0, 1] == pytest.approx(1)
    assert distances[0, 2] == pytest.approx(np.sqrt(1 / 3))
    assert distances[1, 2] == pytest.approx(np.sqrt(2 / 3))
    assert np.diag(distances).tolist() == [0, 0, 0]


def test_colour_distance_sees_colours_and_not_where_they_are():
    red_blue, blue_red = halves((255, 0, 0), (0, 0, 255)), halves((0, 0, 255), (255, 0, 0))
    red, green = flat(255, 0, 0), flat(0, 255, 0)
    distances = colour_distances([red_blue, blue_red, red, green])
    assert distances[0, 1] == 0
    assert pixel_distances([red_blue, blue_red])[0, 1] > 0.5
    assert distances[2, 3] == pytest.approx(1)  # no colour in common
    assert distances[0, 2] == pytest.approx(np.sqrt(1 - np.sqrt(0.5)))  # Hellinger, half the mass in common


def test_embedding_distance_is_one_minus_cosine_and_refuses_zero_vectors():
    distances = embedding_distances(lambda images: [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])([flat(0, 0, 0)] * 3)
    assert distances == pytest.approx(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), abs=1e-12)
    with pytest.raises(ValueError, match="zero or not finite"):
        embedding_distances(lambda images: np.zeros((2, 3)))([flat(0, 0, 0)] * 2)
    with pytest.raises(ValueError, match=r"\[2, d\] for 2 pictures, got \[1, 3\]"):
        embedding_distances(lambda images: np.ones((1, 3)))([flat(0, 0, 0)] * 2)


def test_a_collapsed_model_loses_diversity_and_the_interval_says_so():
    rng = np.random.default_rng(0)
    varied = [[flat(*rng.integers(0, 256, 3)) for _ in range(3)] for _ in range(20)]
    collapsed = [[flat(90, 120, 30)] * 3 for _ in range(20)]
    result = measure_diversity(varied, collapsed, bootstrap=200)
    assert set(result) == {
        "pixels over seeds", "pixels across prompts", "colours over seeds", "colours across prompts",
    }  # fmt: skip
    for row in result.values():
        assert row.aligned.value == 0
        assert row.base.value > 0.2
        assert row.difference.high < 0
        assert row.difference.value == pytest.approx(-row.base.value)


def test_one_seed_has_no_diversity_over_seeds():
    pictures = [[flat(0, 0, 0)], [flat(255, 255, 255)], [flat(255, 0, 0)]]
    result = measure_diversity(pictures, pictures, bootstrap=200, embed=lambda images: np.eye(3)[: len(images)])
    assert set(result) == {"pixels across prompts", "colours across prompts", "embedding across prompts"}
    expected = (1 + np.sqrt(1 / 3) + np.sqrt(2 / 3)) / 3
    assert result["pixels across prompts"].base.value == pytest.approx(expected)
    assert result["pixels across prompts"].difference.low == 0


def test_a_prompt_drawn_twice_is_not_a_pair_with_itself():
    # Every distance between different prompts is 1: no resample may report less.
    result = pairwise_difference(1 - np.eye(6), np.zeros((6, 6)), bootstrap=500)
    assert (result.base.value, result.base.low, result.base.high) == (1, 1, 1)
    assert (result.difference.low, result.difference.high) == (-1, -1)
