"""Preference pairs for vision-language models with gold labels: what the picture shows against what usually is.

The chosen response is right by the scene. The rejected one says what the habits (:mod:`mmalign.playground.habits`)
foretell where the scene breaks them, or, on policy, whatever the model itself gets wrong. Objectives that set
``chosen`` against itself with another picture (``chosen@crop``, ``chosen@blank``, ...) read the same rows and leave the
rejected text alone; ``chosen@retrieved`` is a picture of which the rejected description is true.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmalign.playground.descriptions import judge_description
from mmalign.playground.habits import COLOUR_OF, broken_habits, expected, sample_with_habits, with_attribute
from mmalign.playground.looking import SIZE
from mmalign.playground.questions import (
    DESCRIBE,
    Question,
    ask,
    describe,
    existence,
    kinds_of,
    read_answer,
)
from mmalign.playground.renderer import render
from mmalign.playground.scene import Scene
from mmalign.types import ImageBytes, ImagePart, Message, VLMPair

_SHAPE_OF = {colour: shape for shape, colour in COLOUR_OF.items()}
_MOST_CHANGES = 2


@dataclass(frozen=True)
class VLMPairSettings:
    """Everything that decides the pairs: ``rows`` of them, ``question_share`` with a question in place of a request for
    a description, on pictures whose habits hold with probability ``follow``. ``any_question``: ask whatever the picture
    answers, not only what the habits get wrong. ``model``: whose own answers the on-policy pairs reject."""

    rows: int = 600
    question_share: float = 0.3
    follow: float = 0.3
    any_question: bool = False
    model: str = "playground/tiny-llava"
    seed: int = 0


def as_habit_has_it(scene: Scene, rng: np.random.Generator, changes: int = 1) -> Scene | None:
    """The scene with up to ``changes`` attributes as the habits have them, different from the scene; None if there are
    none to change.

    A shape may also be the one whose colour it has: descriptions name the colour first, so a model guesses that.
    """
    changed = scene
    for _ in range(changes):
        options = list(_options(changed))
        if options:
            changed = options[int(rng.integers(len(options)))]
    return changed if changed.attributes != scene.attributes else None


def prior_pairs(settings: VLMPairSettings) -> list[VLMPair]:
    """Right against what the habits foretell: ``settings.rows`` rows on combinations open to training."""
    rng = np.random.default_rng([settings.seed, 5])
    rows: list[VLMPair] = []
    while len(rows) < settings.rows:
        scene = sample_with_habits(rng, follow=settings.follow)
        other = as_habit_has_it(scene, rng, changes=int(rng.integers(1, _MOST_CHANGES + 1)))
        if other is None:
            continue
        if rng.random() >= settings.question_share:
            texts = (DESCRIBE[0], describe(scene), describe(other))
        elif settings.any_question:
            question, wrong = _ask_anything(scene, rng)
            rows.append(_row(len(rows), scene, question.text, question.answer, wrong, settings, None))
            continue
        else:
            question = _ask_where_they_differ(scene, other, rng)
            texts = (question.text, question.answer, _answer_of(question, other))
        rows.append(_row(len(rows), scene, *texts, settings, other))
    return rows


def own_pairs(model: Any, processor: Any, settings: VLMPairSettings) -> list[VLMPair]:
    """Right against the model's own greedy description, of the pictures where that makes something up.

    At most ``settings.rows`` rows: as many pictures are described, and those without a mistake give none.
    """
    from mmalign.evaluation.vlm_answers import greedy_answers

    rng = np.random.default_rng([settings.seed, 6])
    scenes = [sample_with_habits(rng, follow=settings.follow) for _ in range(settings.rows)]
    images = [Image.fromarray(render(scene, SIZE)) for scene in scenes]
    said = greedy_answers(model, processor, images, [DESCRIBE[0]] * len(scenes), max_new_tokens=40)
    rows: list[VLMPair] = []
    for scene, text in zip(scenes, said, strict=True):
        if text and judge_description(text, scene).hallucinates:
            rows.append(_row(len(rows), scene, DESCRIBE[0], describe(scene), text, settings, None))
    if not rows:
        raise ValueError(
            f"{settings.model} made nothing up in {settings.rows} descriptions: raise rows, or follow less"
        )
    return rows


def _options(scene: Scene) -> Iterator[Scene]:
    """Every scene that differs in one attribute, which is there as a habit has it."""
    foretold = [(name, expected(scene)[name]) for name in broken_habits(scene)]
    number = 1 if scene.level in ("single", "count") else len(scene.things)
    foretold += [
        (f"shape {index}", _SHAPE_OF[thing.colour])
        for index, thing in enumerate(scene.things[:number], start=1)
        if thing.colour in _SHAPE_OF and thing.shape != _SHAPE_OF[thing.colour]
    ]
    for name, value in foretold:
        changed = with_attribute(scene, name, value)
        if changed is not None:
            yield changed


def _ask_where_they_differ(scene: Scene, other: Scene, rng: np.random.Generator) -> Question:
    """A question that the scene and the other one answer differently; of those for existence, half are true."""
    shown, foretold = ({thing.shape for thing in each.things} for each in (scene, other))
    if shown != foretold and rng.random() < 0.5:
        only = shown - foretold if rng.random() < 0.5 else foretold - shown
        return existence(min(only), scene)
    kinds = [kind for kind in kinds_of(scene) if kind != "existence"]
    while True:
        question = ask(scene, str(rng.choice(kinds)), rng)
        if _answer_of(question, other) != question.answer:
            return question


def _ask_anything(scene: Scene, rng: np.random.Generator) -> tuple[Question, str]:
    """Any question that the scene answers, and a wrong answer: right for some other scene."""
    question = ask(scene, str(rng.choice(kinds_of(scene))), rng)
    while True:
        drawn = sample_with_habits(rng, follow=0)  # of any level: things that are one are always one
        if question.kind in kinds_of(drawn):
            wrong = ask(drawn, question.kind, rng).answer
            if wrong != question.answer:
                return question, wrong


def _answer_of(question: Question, scene: Scene) -> str:
    """What the question would be answered of another scene; of yes and no, the wrong one."""
    if question.is_yes_no:
        return "no" if question.answer == "yes" else "yes"
    words = question.text.split()
    subject = next((thing for thing in scene.things if thing.shape in words or thing.colour in words), scene.things[0])
    if question.kind in ("colour", "shape", "size"):
        return getattr(subject, question.kind)
    rng = np.random.default_rng(0)
    return read_answer(ask(scene, question.kind, rng).answer)


def _row(
    index: int,
    scene: Scene,
    question: str,
    chosen: str,
    rejected: str,
    settings: VLMPairSettings,
    other: Scene | None,
) -> VLMPair:
    name = f"vlm-{settings.seed}-{index}"
    own = {"retrieved": (_png(other, f"{name}, retrieved"),)} if other is not None else {}
    return VLMPair(
        sample_id=name,
        prompt=(Message("user", (ImagePart(0), question)),),
        chosen=chosen,
        rejected=rejected,
        images=(_png(scene, name),),
        branch_images=own,
        extras={"source": "playground", "scene": describe(scene)},
    )


def _png(scene: Scene, origin: str) -> ImageBytes:
    buffer = io.BytesIO()
    Image.fromarray(render(scene, SIZE)).save(buffer, "PNG")
    return ImageBytes(origin=origin, data=buffer.getvalue())


def collect(kind: str, settings: VLMPairSettings) -> Sequence[VLMPair]:
    """The rows of ``vlm`` or ``vlm-own``; the latter loads ``settings.model``."""
    if kind == "vlm":
        return prior_pairs(settings)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmalign.models.vlm_names import peek_vlm
    from mmalign.training.config.model import ModelConfig

    folder = peek_vlm(ModelConfig(name=settings.model)).location
    return own_pairs(
        AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder), settings
    )
