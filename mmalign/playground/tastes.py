"""Users who disagree, and preferences that go round in circles: labels that no one score of a picture explains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmalign.playground.oracle import read
from mmalign.playground.pairs import Reward, make_pairs
from mmalign.playground.scene import BACKGROUNDS


def bright(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:  # noqa: ARG001 - a reward's form
    """Mean luma in [0, 1]."""
    return [float(np.asarray(image.convert("L"), np.float32).mean()) / 255 for image in images]


def dark(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """Minus :func:`bright`: the user who always disagrees with it."""
    return [-luma for luma in bright(prompts, images)]


def on_the_left(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:  # noqa: ARG001
    """1 - x of the largest thing's centre; one half where nothing is seen."""
    things = [read(image).things for image in images]
    return [1 - seen[0].x if seen else 0.5 for seen in things]


def on_the_right(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """1 - :func:`on_the_left`."""
    return [1 - value for value in on_the_left(prompts, images)]


TASTES: dict[str, Reward] = {"bright": bright, "dark": dark, "left": on_the_left, "right": on_the_right}


def make_user_pairs(
    groups: Sequence[tuple[str, Sequence[Image.Image]]],
    *,
    tastes: Mapping[str, Reward] = TASTES,
    users_per_taste: int = 4,
    seed: int = 0,
    model: str = "playground/tiny-sdxl",
) -> list[dict[str, Any]]:
    """Rows in the columns of Pick-a-Pic with ``user_id``: every user labels every prompt's pictures by one taste.

    Users 0, 1, ... hold the tastes in turn, so user u has taste ``u % len(tastes)``; the column ``taste`` says which.
    A user sees two of a prompt's pictures, drawn with ``seed``, and prefers the one of higher taste. Equal ones give no
    row.
    """
    rows, names = [], list(tastes)
    for user in range(users_per_taste * len(names)):
        taste = names[user % len(names)]
        rng = np.random.default_rng([seed, user])
        shown = [
            (prompt, [samples[index] for index in rng.choice(len(samples), 2, replace=False)])
            for prompt, samples in groups
        ]
        of_user = make_pairs(shown, tastes[taste], seed=seed * 1000 + user, model=model)
        rows += [row | {"user_id": user, "taste": taste} for row in of_user]
    return rows


def beats(first: Image.Image, second: Image.Image) -> float:
    """1 where the first picture's background beats the second's, -1 where it loses, 0 where neither does.

    The six backgrounds stand in a circle, and each beats the next two: white beats black and grey, ..., brown beats
    white and black. Backgrounds that are equal or opposite, or that the oracle cannot name, are no contest. The best
    that any score of single pictures can do is 9 of the 12 contests.
    """
    seen = [read(image).background for image in (first, second)]
    if None in seen:
        return 0.0
    ahead = (BACKGROUNDS.index(str(seen[1])) - BACKGROUNDS.index(str(seen[0]))) % len(BACKGROUNDS)
    return {1: 1.0, 2: 1.0, 4: -1.0, 5: -1.0}.get(ahead, 0.0)


def make_cyclic_pairs(
    groups: Sequence[tuple[str, Sequence[Image.Image]]], *, seed: int = 0, model: str = "playground/tiny-sdxl"
) -> list[dict[str, Any]]:
    """Rows in the columns of Pick-a-Pic: the first two pictures of each prompt, where one :func:`beats` the other."""

    def contest(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:  # noqa: ARG001
        return [beats(*images), 0.0]

    return make_pairs([(prompt, images[:2]) for prompt, images in groups], contest, seed=seed, model=model)
