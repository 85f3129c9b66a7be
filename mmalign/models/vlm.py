"""Vision-language models with their processor: loading, and which of their layers are trained."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.models.hub_errors import HUB_ERRORS, explain
from mmalign.models.lora_weights import plain_modules
from mmalign.models.vlm_names import Parts, VLMInfo, peek_vlm, pixels_problem
from mmalign.training.config import LoRAConfig, ModelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True)
class VLMComponents:
    """A loaded model with a language head and its processor (chat template, tokenizer, picture processing)."""

    info: VLMInfo
    model: Any
    processor: Any


def load_vlm(
    model: ModelConfig, *, attention: str = "sdpa", min_pixels: int | None = None, max_pixels: int | None = None
) -> VLMComponents:
    """``model`` on the CPU, frozen, in ``model.dtype``, from safetensors only; ValueError saying what to do.

    ``attention``: implementation in the language model and in the vision tower (FlexAttention: in the former alone,
    which is where there is something to skip). ``min_pixels``, ``max_pixels``: pictures are scaled to lie between.
    """
    info, processor = _processor(model, min_pixels, max_pixels)
    chosen: Any = {"text_config": attention, "": "sdpa"} if attention == "flex_attention" else attention
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            info.location,
            revision=model.revision,
            dtype=_DTYPES[model.dtype],
            attn_implementation=chosen,
            use_safetensors=True,
        )
    except ImportError as error:
        raise ValueError(f"vlm.attention: {attention} is not possible here: {error}") from error
    except HUB_ERRORS as error:
        if attention in str(error):  # which families it supports depends on the version of transformers
            raise ValueError(f"vlm.attention: {attention} is not for a {info.model_type} here; use sdpa") from error
        raise ValueError(explain(error, model.name, revision=model.revision)) from error
    loaded.requires_grad_(False).eval()
    return VLMComponents(info, loaded, processor)


def vlm_without_weights(
    model: ModelConfig, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> VLMComponents:
    """The same with a model on the meta device: for tokens, shapes and names."""
    info, processor = _processor(model, min_pixels, max_pixels)
    return VLMComponents(info, vlm_skeleton(info), processor)


def _processor(model: ModelConfig, min_pixels: int | None, max_pixels: int | None) -> tuple[VLMInfo, Any]:
    info = peek_vlm(model)
    if problem := pixels_problem(info, min_pixels, max_pixels):
        raise ValueError(problem)
    try:
        processor: Any = AutoProcessor.from_pretrained(info.location, revision=model.revision)
    except ImportError as error:
        raise ValueError(f"model {model.name!r}: its processor needs another package: {error}") from error
    except HUB_ERRORS as error:
        raise ValueError(explain(error, model.name, revision=model.revision)) from error
    _limit_pixels(processor.image_processor, min_pixels, max_pixels)
    return info, processor


def _limit_pixels(images: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set what the processor of pictures calls its shortest and longest edge, and which are numbers of pixels."""
    given: dict[str, Any] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    wanted = {name: pixels for name, pixels in given.items() if pixels is not None}
    if not wanted:
        return
    least, most = (int(wanted.get(name, images.size[name])) for name in given)
    if least > most:
        raise ValueError(
            f"pictures would have at least {least} and at most {most} pixels; set vlm.min_pixels and vlm.max_pixels "
            "both, because the processor's own limit stands where one is not set"
        )
    images.size = {"shortest_edge": least, "longest_edge": most}


def vlm_skeleton(info: VLMInfo) -> Any:
    """The model without weights, on the meta device: for shapes and names."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(info.location)
    except HUB_ERRORS as error:
        raise ValueError(explain(error, info.name)) from error
    with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForImageTextToText.from_config(config)


def frozen_by(freeze: str, parts: Parts, name: str) -> bool:
    """Whether ``vlm.freeze`` keeps the weight or layer ``name`` as it is."""
    in_text = _inside(name, parts.text) or _inside(name, "lm_head")
    if freeze == "none" or in_text:
        return False
    in_projector = any(_inside(name, projector) for projector in parts.projector)
    return freeze == "vision" or (_inside(name, parts.tower) and not in_projector)


def lora_layers_of(model: nn.Module, lora: LoRAConfig, freeze: str, parts: Parts) -> LoRAConfig:
    """``lora`` with the full name of every layer that it adapts; ValueError for targets that match nothing.

    Names of vision towers end as those of language models do (``q_proj``), so endings alone would not say which.
    """
    names = [
        name
        for name, module in plain_modules(model).items()
        if isinstance(module, _ADAPTABLE) and not frozen_by(freeze, parts, name)
    ]
    matching = {
        target: [name for name in names if name == target or name.endswith(f".{target}")] for target in lora.targets
    }
    without = [target for target, found in matching.items() if not found]
    if without:
        endings = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ValueError(
            f"model.lora.targets: {', '.join(without)} matches no layer of {type(model).__name__} that "
            f"vlm.freeze: {freeze} lets be trained. Layer names end in: {', '.join(endings)}"
        )
    return lora.model_copy(update={"targets": sorted({name for found in matching.values() for name in found})})


def freeze_parts(model: nn.Module, freeze: str, parts: Parts) -> None:
    """Take the weights that ``vlm.freeze`` keeps out of training."""
    for name, parameter in model.named_parameters():
        if frozen_by(freeze, parts, name):
            parameter.requires_grad_(False)


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
