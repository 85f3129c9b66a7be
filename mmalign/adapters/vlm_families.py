"""The model families of :class:`mmalign.adapters.VLMAdapter`: how pictures are encoded, and where tokens stand."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.utils import ModelOutput

from mmalign.adapters.vlm_batch import Context

KINDS = ("image", "video")


@dataclass(frozen=True)
class Family:
    """``image`` and ``video``: the processor's outputs that ``get_image_features`` and ``get_video_features`` take.

    ``optional`` ones may be missing. ``rope``: further ones that ``get_rope_index`` takes. ``mrope``: positions have
    three axes. ``entries``: the output whose first dimension counts what the encoder gives per kind. ``text``: the
    language model inside ``model.model``. ``flat``: the encoder's output is one tensor, not a list. ``deepstack``:
    features of inner layers belong to it.
    """

    image: tuple[str, ...]
    video: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    rope: tuple[str, ...] = ()
    mrope: bool = False
    entries: Mapping[str, str] | None = None
    text: str = "language_model"
    flat: tuple[str, ...] = ()
    deepstack: bool = False

    @property
    def known(self) -> tuple[str, ...]:
        """Every name that ``media`` may have."""
        return (*self.image, *self.video, *self.rope)

    def names(self, kind: str) -> tuple[str, ...]:
        """Arguments of the encoder of ``kind``."""
        return self.image if kind == "image" else self.video


_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_QWEN_IMAGE, _QWEN_VIDEO = ("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")

FAMILIES: dict[str, Family] = {
    "llava": Family(("pixel_values",)),
    "llava_next": Family(("pixel_values", "image_sizes")),
    "llava_onevision": Family(
        ("pixel_values", "image_sizes", "batch_num_images"),
        ("pixel_values_videos",),
        optional=("batch_num_images",),
        flat=("video",),
    ),
    "qwen2_vl": Family(_QWEN_IMAGE, _QWEN_VIDEO, mrope=True, entries=_GRIDS),
    "qwen2_5_vl": Family(
        _QWEN_IMAGE,
        _QWEN_VIDEO,
        optional=("second_per_grid_ts",),
        rope=("second_per_grid_ts",),
        mrope=True,
        entries=_GRIDS,
    ),
    "qwen3_vl": Family(_QWEN_IMAGE, _QWEN_VIDEO, mrope=True, entries=_GRIDS, deepstack=True),
    "internvl": Family(("pixel_values",), flat=("image",)),
    "idefics3": Family(("pixel_values", "pixel_attention_mask"), optional=("pixel_attention_mask",), text="text_model"),
    "smolvlm": Family(("pixel_values", "pixel_attention_mask"), optional=("pixel_attention_mask",), text="text_model"),
}


@dataclass(frozen=True)
class Features:
    """Of one picture set: kind -> tensors [tokens, width], one per picture; ``deepstack``: kind -> layer -> tensors."""

    tokens: Mapping[str, Sequence[Tensor]]
    deepstack: Mapping[str, Sequence[Sequence[Tensor]]]

    def count(self, kind: str) -> int:
        """Tokens of ``kind``."""
        return sum(part.shape[0] for part in self.tokens.get(kind, ()))


def family_of(model: Any) -> Family:
    """The family of a model with a language head; ValueError for others."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(
            f"{type(model).__name__} (model_type {kind!r}) is no family that is known here; known: "
            f"{', '.join(FAMILIES)}. The adapter takes the class with a language head, as AutoModelForImageTextToText "
            "loads it"
        )
    return FAMILIES[kind]


def text_model(model: Any) -> Any:
    """The language model without its head."""
    return model.model.get_submodule(family_of(model).text)


def vision_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Encoder and projector: every parameter of ``model.model`` outside the language model."""
    inside = f"{family_of(model).text}."
    return {name: value for name, value in model.model.named_parameters() if not name.startswith(inside)}


def takes_encoded(model: Any) -> bool:
    """Whether pictures can be handed over encoded (transformers from 5.18 on)."""
    return "mm_encoder_outputs" in inspect.signature(type(model.model).forward).parameters


def make_context(
    model: Any,
    input_ids: Int[Tensor, " prompt"],
    media: Mapping[str, Tensor],
    *,
    mm_token_type_ids: Int[Tensor, " prompt"] | None = None,
    key: str | None = None,
    name: str = "the prompt",
) -> Context:
    """A checked :class:`Context`; see :meth:`mmalign.adapters.VLMAdapter.context`."""
    family = family_of(model)
    media = {argument: value for argument, value in media.items() if value is not None}
    unknown = [argument for argument in media if argument not in family.known]
    if unknown:
        raise ValueError(
            f"{name}: {unknown[0]} is nothing that a {model.config.model_type} takes; it takes {family.known}"
        )
    placeholders = {}
    for kind in KINDS:
        count = int((input_ids == placeholder(model, kind)).sum())
        given = [argument for argument in family.names(kind) if argument in media]
        missing = [a for a in family.names(kind) if a not in media and a not in family.optional]
        if count and not given:
            raise ValueError(f"{name}: {count} {kind} tokens stand in the prompt, but no {kind} is given")
        if given and (missing or not count):
            lack = f"{', '.join(missing)} is missing" if missing else f"no {kind} token stands in the prompt"
            raise ValueError(f"{name}: {', '.join(given)} is given, but {lack}; take all that the processor returns")
        if count:
            placeholders[kind] = count
    positions = _positions(model, family, input_ids, media, mm_token_type_ids, name)
    return Context(input_ids, positions, media, placeholders, _key(media) if key is None else key)


def placeholder(model: Any, kind: str) -> int:
    """Token id that stands for a picture or a video; -1 where the family has none."""
    found = getattr(model.config, f"{kind}_token_id", None)
    return -1 if found is None else found


def _key(media: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(media):
        value = media[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if media else ""


def _positions(
    model: Any, family: Family, ids: Tensor, media: Mapping[str, Tensor], types: Tensor | None, name: str
) -> Tensor:
    axes = 3 if family.mrope else 1
    if not media or not family.mrope:
        return torch.arange(ids.shape[0] + 1).expand(axes, -1)
    if types is None:
        raise ValueError(
            f"{name}: a {model.config.model_type} needs mm_token_type_ids with its pictures. Without them it would use "
            "positions of plain text and not say so; ask the processor for them (return_mm_token_type_ids=True)"
        )
    expected = sum((ids == placeholder(model, kind)) * (number + 1) for number, kind in enumerate(KINDS))
    if types.shape != ids.shape or not torch.equal(types.long(), torch.as_tensor(expected).long()):
        raise ValueError(
            f"{name}: mm_token_type_ids do not mark the image tokens (1) and video tokens (2) of the prompt"
        )
    # One text token more, so that the position of a response's first token is read and not worked out.
    longer = torch.cat([ids, ids.new_zeros(1)])[None]
    grids = {argument: media[argument] for argument in (*_GRIDS.values(), *family.rope) if argument in media}
    try:
        found, _ = model.model.get_rope_index(
            longer, mm_token_type_ids=torch.cat([types, types.new_zeros(1)])[None], **grids
        )
    except (StopIteration, RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: the image tokens do not fit the grids of the pictures ({error})") from error
    return found[:, 0]


def encode(model: Any, media: Sequence[Mapping[str, Tensor]]) -> list[Features]:
    """Features of every item of ``media``, one call of the encoder per kind."""
    family = family_of(model)
    tokens: list[dict[str, Sequence[Tensor]]] = [{} for _ in media]
    inner: list[dict[str, Sequence[Sequence[Tensor]]]] = [{} for _ in media]
    for kind in KINDS:
        having = [index for index, item in enumerate(media) if _PIXELS[kind] in item]
        if not having:
            continue
        given = stacked([media[index] for index in having], family.names(kind))
        features = getattr(model.model, f"get_{kind}_features")(**given, return_dict=True)
        parts = list(features.pooler_output)
        layers = [list(layer) for layer in features.deepstack_features] if family.deepstack else []
        counted = (family.entries or _PIXELS)[kind]
        start = 0
        for index in having:
            end = start + media[index][counted].shape[0]
            tokens[index][kind] = parts[start:end]
            inner[index][kind] = [layer[start:end] for layer in layers]
            start = end
    return [Features(of, layers) for of, layers in zip(tokens, inner, strict=True)]


def stacked(media: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The arguments ``names`` of several items in one tensor each, smaller ones padded with zeros as processors do."""
    given = {}
    for name in names:
        values = [item[name] for item in media if name in item]
        if not values:
            continue
        if len(values) < len(media):
            raise ValueError(f"{name} is given for some pictures of the batch and not for others")
        largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        given[name] = torch.cat([_padded(value, largest) for value in values])
    return given


def _padded(value: Tensor, sizes: Sequence[int]) -> Tensor:
    if list(value.shape[1:]) == list(sizes):
        return value
    padding = [
        end for size, now in zip(reversed(sizes), reversed(value.shape[1:]), strict=True) for end in (0, size - now)
    ]
    return nn.functional.pad(value, padding)


def encoder_outputs(family: Family, features: Sequence[Features]) -> dict[str, ModelOutput]:
    """``mm_encoder_outputs`` for rows whose placeholders stand in the order of ``features``."""
    outputs = {}
    for kind in KINDS:
        parts = [part for of in features for part in of.tokens.get(kind, ())]
        if not parts:
            continue
        one = torch.cat(parts)[None] if kind == "video" else torch.cat(parts)  # LLaVA-OneVision flattens its videos
        given: dict[str, Any] = {"pooler_output": one if kind in family.flat else parts}
        if family.deepstack:
            layers = zip(*(of.deepstack[kind] for of in features if of.tokens.get(kind)), strict=True)
            given["deepstack_features"] = [[part for of in layer for part in of] for layer in layers]
        outputs[kind] = ModelOutput(given)
    return outputs
