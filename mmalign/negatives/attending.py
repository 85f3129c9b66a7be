"""How a model's attention is shared out among pictures, or parts of one, while it says a response."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.models.vlm_encode import Prompt
from mmalign.models.vlm_names import PARTS
from mmalign.negatives.speaking import Speaker

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Attended:
    """``weights`` [prompt]: attention that each token of the prompt gets, the mean over heads and over the tokens that
    the response is read off at, in one layer. ``perplexity``: exp of the mean of -log max p, of the model's own choice.
    """

    weights: Float[Tensor, " prompt"]
    perplexity: float


@torch.no_grad()
def attended(speaker: Speaker, told: Prompt, response: str, *, layer: int | None = None, name: str = "row") -> Attended:
    """What the model attends to in the prompt ``told`` while it says ``response``.

    ``layer``: of the language model, from 0; None is the middle one, number 16 of LLaVA-1.5-7B's 32 as MIA-DPO takes
    it (arXiv 2410.17637). Attention is computed by the eager kernel, since the others do not give its weights.
    """
    answer = speaker.encoder.answer(told, response, name).input_ids
    with _attention_of(speaker.model, layer) as kept:
        logits = speaker.logits(told, answer)
    length = len(told.input_ids)
    weights = kept[0][0, :, length - 1 : length - 1 + len(answer), :length]
    most = logits.float().log_softmax(-1).amax(-1)
    return Attended(weights.float().mean(dim=(0, 1)).cpu(), math.exp(-float(most.mean())))


def layers_of(model: Any) -> Any:
    """The layers of the language model inside ``model``."""
    return model.get_submodule(PARTS[model.config.model_type].text).layers


@contextmanager
def _attention_of(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    layers = layers_of(model)
    place = len(layers) // 2 if layer is None else layer
    if not 0 <= place < len(layers):
        raise ValueError(f"layer={layer!r} must lie between 0 and {len(layers) - 1}: the model has {len(layers)}")
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise ValueError(f"the attention of {type(model).__name__} does not give its weights, eager or not")
        kept.append(weights)

    before = model.config.text_config._attn_implementation
    handle = layers[place].self_attn.register_forward_hook(keep)
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield kept
    finally:
        handle.remove()
        model.set_attn_implementation({"text_config": before})


def tokens_of_pictures(speaker: Speaker, told: Prompt, images: Sequence[Any], name: str) -> list[Tensor]:
    """Places in the prompt of every picture's tokens, in the order of the pictures.

    They are stretches apart from each other where the template puts text between pictures; a family that has text
    inside a picture's tokens is asked for each picture alone. ValueError where neither tells them apart.
    """
    shown = speaker.shown(told).nonzero()[:, 0]
    breaks = (shown.diff() > 1).nonzero()[:, 0] + 1
    runs = list(shown.tensor_split(breaks.tolist()))
    if len(runs) == len(images):
        return runs
    counts = [len(speaker.shown(alone(speaker, image, name)).nonzero()) for image in images]
    if sum(counts) != len(shown):
        raise ValueError(
            f"{name}: {len(shown)} picture tokens are not the {sum(counts)} of its pictures one by one, so it is not "
            "known whose they are"
        )
    return list(shown.split(counts))


def alone(speaker: Speaker, image: Any, name: str) -> Prompt:
    """A prompt that shows nothing but one picture."""
    from mmalign.types import ImagePart, Message

    return speaker.encoder.prompt((Message("user", (ImagePart(0), "?")),), [image], name)


def tokens_in_boxes(
    model: Any, told: Prompt, tokens: Tensor, size: tuple[int, int], boxes: Sequence[Box], name: str
) -> list[Tensor]:
    """Those of one picture's ``tokens`` whose centre lies in each box (left, top, right, bottom, of ``size`` pixels).

    ValueError for a family whose tokens are no plain grid over the picture.
    """
    rows, columns = _grid_of(model, told, len(tokens), name)
    tokens = tokens[: rows * columns]
    across = (torch.arange(columns) + 0.5) * size[0] / columns
    down = (torch.arange(rows) + 0.5) * size[1] / rows
    found = []
    for left, top, right, bottom in boxes:
        inside = ((down >= top) & (down < bottom))[:, None] & ((across >= left) & (across < right))
        found.append(tokens[inside.reshape(-1)])
        if not len(found[-1]):
            raise ValueError(f"{name}: no token of the picture lies in {(left, top, right, bottom)} of {size}")
    return found


def _grid_of(model: Any, told: Prompt, number: int, name: str) -> tuple[int, int]:
    """(rows, columns) of the tokens that cover a whole square picture, which come first."""
    kind, vision = model.config.model_type, model.config.vision_config
    if "image_grid_thw" in told.media:
        merge = vision.spatial_merge_size
        _, high, wide = told.media["image_grid_thw"][0].tolist()
        return high // merge, wide // merge
    if kind in ("llava", "llava_next"):  # of LLaVA-NeXT, the first part: the picture as a whole, before its tiles
        side = vision.image_size // vision.patch_size
        if side * side <= number:
            return side, side
    raise ValueError(
        f"{name}: where the tokens of {kind} lie in a picture is not known; take kind=sequence, which needs no places"
    )
