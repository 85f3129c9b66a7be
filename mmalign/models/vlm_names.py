"""What the name of a vision-language model means, and what its parts are called; no weight is read.

This module must stay light (no torch, no transformers): the validation of a recipe imports it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.models.hub_errors import HUB_ERRORS, explain
from mmalign.models.names import INDEX, PLAYGROUND, is_hub_id
from mmalign.training.config.model import ModelConfig


@dataclass(frozen=True)
class Parts:
    """Paths inside the class with a language head: language model, vision tower (projector included where it lies
    inside), and projector."""

    text: str
    tower: str
    projector: tuple[str, ...]


_LLAVA = Parts("model.language_model", "model.vision_tower", ("model.multi_modal_projector", "model.image_newline"))
_QWEN = Parts("model.language_model", "model.visual", ("model.visual.merger", "model.visual.deepstack_merger_list"))
_IDEFICS = Parts("model.text_model", "model.vision_model", ("model.connector",))

PARTS: dict[str, Parts] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": _LLAVA,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": _LLAVA,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
}


SIZED_BY_PIXELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose processors scale a picture to between two numbers of pixels."""


@dataclass(frozen=True)
class VLMInfo:
    """``location``: a folder or a hub id; ``model_type``: a key of ``PARTS``; ``config``: that of ``config.json``."""

    name: str
    location: str
    model_type: str
    config: dict[str, Any]

    @property
    def parts(self) -> Parts:
        """What the model's parts are called."""
        return PARTS[self.model_type]


def peek_vlm(model: ModelConfig) -> VLMInfo:
    """What model ``model.name`` is; ValueError where it is none, or none of the families in ``PARTS``."""
    location = _location(model.name)
    config = _config(location, model)
    kind = config.get("model_type")
    if kind not in PARTS:
        raise ValueError(
            f"model {model.name!r} is a {kind}, and the vision-language families known here are {', '.join(PARTS)} "
            "(classes of transformers; original checkpoints of LLaVA or InternVL have to be converted ones, ending in "
            "-hf)"
        )
    return VLMInfo(model.name, location, kind, config)


def pixels_problem(info: VLMInfo, min_pixels: int | None, max_pixels: int | None) -> str:
    """What is wrong with limits on the pixels of pictures for this model; "" where nothing is."""
    if (min_pixels, max_pixels) == (None, None) or info.model_type in SIZED_BY_PIXELS:
        return ""
    return (
        f"vlm.min_pixels and vlm.max_pixels mean nothing for a {info.model_type}, whose processor does not count "
        f"pixels; they are for {', '.join(SIZED_BY_PIXELS)}"
    )


def _location(name: str) -> str:
    folder = (
        PLAYGROUND / name.removeprefix("playground/") if name.startswith("playground/") else Path(name).expanduser()
    )
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model {name!r} is a LoRA, not a model. Merge it first: "
            f"AutoModelForImageTextToText.from_pretrained(BASE), load_adapter({name!r}), and save the merged model"
        )
    if (folder / INDEX).is_file():
        raise ValueError(
            f"model {name!r} is a diffusers pipeline, an image generator; train it with family: image (the default), "
            "whose recipes are sd15/, sdxl/, sd35/ and flux/"
        )
    if folder.exists() or not is_hub_id(name):
        raise ValueError(f"model {name!r} is no folder with a config.json, and no hub id (organisation/name)")
    return name


def _config(location: str, model: ModelConfig) -> dict[str, Any]:
    try:
        if Path(location).is_dir():
            file = Path(location) / "config.json"
        else:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(location, "config.json", revision=model.revision))
        return json.loads(file.read_text(encoding="utf-8"))
    except HUB_ERRORS as error:
        raise ValueError(explain(error, model.name, revision=model.revision)) from error
