"""What ``tiny-llava`` is trained on: pictures with dense labels for its eyes, with conversations for its words.

Conversations are packed: one picture, then a description and several questions that all see the picture and none of
each other, as if each stood alone behind it.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmalign.playground.habits import sample_with_habits
from mmalign.playground.questions import DESCRIBE, ask, describe, kinds_of
from mmalign.playground.renderer import coverage, render
from mmalign.playground.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, STYLES, Scene
from mmalign.playground.tiny_llava import ASSISTANT_ID, EOS_ID, IMAGE_SIZE, PATCH_SIZE, build_tokenizer

LABELS = {
    "shape": ("none", *SHAPES),
    "colour": ("none", *COLOURS),
    "size": ("none", *SIZES),
    "style": ("none", *STYLES),
    "background": BACKGROUNDS,
}
"""What the vision tower learns to say of every patch; "none" where no thing covers it."""

_MIN_COVER = 0.15
_CHUNK = 500


@dataclass(frozen=True)
class Conversations:
    """Pictures [rows, 3, side, side] uint8 and one packed row of tokens each, all int64 [rows, length].

    ``segment``: 0 for padding, else the number of the exchange a token belongs to. ``position``: from 0 in every
    exchange. ``is_answer``: tokens to learn, each one's predecessor in the row being what predicts it.
    """

    pictures: Tensor
    tokens: Tensor
    segment: Tensor
    position: Tensor
    is_answer: Tensor


def patch_dataset(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [rows, 3, side, side] uint8 of a world without habits, and labels [rows, patches, len(LABELS)] uint8."""
    parts = _in_processes(_patch_chunk, rows, [seed])
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _channels_first(pictures), torch.from_numpy(labels)


def conversation_dataset(rows: int, seed: int, *, follow: float, questions: int, yes_share: float) -> Conversations:
    """Pictures of a world whose habits hold with probability ``follow``, each with a description and ``questions``."""
    parts = _in_processes(_conversation_chunk, rows, [seed, follow, questions, yes_share])
    packed = [row for part in parts for row in part[1]]
    arrays = np.zeros((4, len(packed), max(len(row[0]) for row in packed)), np.int64)
    for index, row in enumerate(packed):
        for kind, values in enumerate(row):
            arrays[kind, index, : len(values)] = values
    pictures = _channels_first(np.concatenate([part[0] for part in parts]))
    return Conversations(pictures, *(torch.from_numpy(array) for array in arrays))


def patch_labels(scene: Scene) -> np.ndarray:
    """[patches, len(LABELS)] uint8: what each patch shows; the thing that covers most of it decides."""
    side = IMAGE_SIZE // PATCH_SIZE
    covers = np.zeros((len(scene.things), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for cover, thing in zip(covers, scene.things, strict=True):
        rows, columns, patch = coverage(thing, "solid", IMAGE_SIZE)
        cover[rows, columns] = patch
    shares = covers.reshape(-1, side, PATCH_SIZE, side, PATCH_SIZE).mean(axis=(2, 4)).reshape(len(covers), -1)
    values = [
        [
            LABELS[name].index(scene.style if name == "style" else getattr(thing, name))
            for name in ("shape", "colour", "size", "style")
        ]
        for thing in scene.things
    ]
    labels = np.zeros((side * side, len(LABELS)), np.uint8)
    covered = shares.max(axis=0) > _MIN_COVER
    labels[covered, :4] = np.array(values, np.uint8)[shares.argmax(axis=0)[covered]]
    labels[:, 4] = BACKGROUNDS.index(scene.background)
    return labels


def _in_processes(make: object, rows: int, arguments: list) -> list:
    sizes = [min(_CHUNK, rows - start) for start in range(0, rows, _CHUNK)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(make, range(len(sizes)), sizes, *([value] * len(sizes) for value in arguments)))  # type: ignore[arg-type]


def _patch_chunk(index: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 1, index])
    scenes = [sample_with_habits(rng, follow=0.0) for _ in range(rows)]
    return np.stack([render(scene, IMAGE_SIZE) for scene in scenes]), np.stack([patch_labels(s) for s in scenes])


def _conversation_chunk(
    index: int, rows: int, seed: int, follow: float, questions: int, yes_share: float
) -> tuple[np.ndarray, list[tuple[list[int], ...]]]:
    rng, tokenizer = np.random.default_rng([seed, 2, index]), build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    pictures, packed = [], []
    for _ in range(rows):
        scene = sample_with_habits(rng, follow=follow)
        exchanges = [(DESCRIBE[int(rng.integers(len(DESCRIBE)))], describe(scene))]
        for kind in rng.choice(kinds_of(scene), questions):
            question = ask(scene, str(kind), rng, yes_share=yes_share)
            exchanges.append((question.text, question.answer))
        pictures.append(render(scene, IMAGE_SIZE))
        packed.append(_pack(exchanges, vocabulary))
    return np.stack(pictures), packed


def _pack(exchanges: list[tuple[str, str]], vocabulary: dict[str, int]) -> tuple[list[int], ...]:
    """Tokens, segments, positions and answers of the exchanges, one behind the other."""
    columns: tuple[list[int], ...] = ([], [], [], [])
    for number, (question, answer) in enumerate(exchanges, start=1):
        asked = [*(vocabulary[word] for word in question.split()), ASSISTANT_ID]
        answered = [*(vocabulary[word] for word in answer.split()), EOS_ID]
        length = len(asked) + len(answered)
        values = (asked + answered, [number] * length, range(length), [0] * len(asked) + [1] * len(answered))
        for column, added in zip(columns, values, strict=True):
            column.extend(added)
    return columns


def _channels_first(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
