"""Pictures to look at with the questions that go with them: what a vision-language model is measured on."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmalign.playground.habits import sample_with_habits
from mmalign.playground.questions import NEGATIVES, Question, absent_shape, ask, existence, kinds_of
from mmalign.playground.renderer import render
from mmalign.playground.scene import Scene

SIZE = 64


@dataclass(frozen=True)
class Look:
    """One picture, some ordinary questions, and questions for existence.

    ``present`` asks for a shape that is there; ``absent`` for one that is not, by each way of choosing it.
    """

    scene: Scene
    image: Image.Image
    questions: tuple[Question, ...]
    present: Question
    absent: dict[str, Question]


def looks(
    n: int, seed: int = 0, *, follow: float = 0.0, questions: int = 3, held_out: bool | None = True
) -> list[Look]:
    """``n`` pictures of combinations that training never sees, habits holding with probability ``follow``.

    With ``follow`` 1 there are too few combinations to hold some out: pass ``held_out`` None.

    The same arguments give the same pictures and questions on every machine. Half of the ordinary questions with yes or
    no are true.
    """
    rng = np.random.default_rng([seed, 3])
    made = []
    for _ in range(n):
        scene = sample_with_habits(rng, follow=follow, held_out=held_out)
        kinds = [kind for kind in kinds_of(scene) if kind != "existence"]
        chosen = rng.choice(len(kinds), min(questions, len(kinds)), replace=False)
        asked = tuple(ask(scene, kinds[index], rng) for index in chosen)
        shown = scene.things[int(rng.integers(len(scene.things)))].shape
        absent = {name: existence(absent_shape(scene, name, rng), scene) for name in NEGATIVES}
        made.append(Look(scene, Image.fromarray(render(scene, SIZE)), asked, existence(shown, scene), absent))
    return made


def blank(image: Image.Image) -> Image.Image:
    """A picture of the same size that shows nothing: even, in the middle of the range."""
    return Image.new("RGB", image.size, (127, 127, 127))
