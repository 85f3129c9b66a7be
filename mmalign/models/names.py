"""What a model name means, and what kind of pipeline it is, found out without loading a weight.

This module must stay light (no torch, no diffusers): a dry run and the validation of a recipe import it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.models.headers import SingleFile, read_single_file
from mmalign.models.hub_errors import HUB_ERRORS, explain
from mmalign.training.config.model import ModelConfig

Kind = Literal["sd", "sdxl", "sd3", "flux"]

TRANSFORMER_KINDS: tuple[Kind, ...] = ("sd3", "flux")
"""Kinds whose denoiser is a transformer that predicts a flow's velocity; the others have a UNet."""

DENOISERS: dict[Kind, str] = {
    "sd": "UNet2DConditionModel",
    "sdxl": "UNet2DConditionModel",
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
}
INDEX = "model_index.json"
LORA_FILE = "pytorch_lora_weights.safetensors"
MODULES_FILE = "trained_modules.safetensors"  # beside LORA_FILE: weights that were trained in full
PLAYGROUND = Path(__file__).parents[1] / "playground" / "weights"

KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SINGLE_FILE = ".safetensors"
_EDITING = ("Inpaint", "Img2Img", "Fill", "Kontext", "Control", "InstructPix2Pix", "Redux")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Components of a class that a model may do without, though plain from_pretrained insists on them.
DISPENSABLE: dict[Kind, dict[str, tuple[str, ...]]] = {"sd3": {"text_encoder_3": ("text_encoder_3", "tokenizer_3")}}


@dataclass(frozen=True)
class ModelInfo:
    """What ``model_index.json`` says about a model.

    ``location`` is a folder or a hub id. ``absent`` are components that the pipeline's class has but this model lacks
    (for example T5 in a slim SD3), or that ``model.drop`` leaves out; loading has to be told so explicitly. ``file``: a
    single-file checkpoint with the weights of the components ``in_file``; the rest is at ``location``.
    """

    name: str
    location: str
    kind: Kind
    class_name: str
    absent: tuple[str, ...] = ()
    file: str | None = None
    in_file: tuple[str, ...] = ()


def resolve_model(name: str) -> str:
    """What ``name`` stands for: ``playground/NAME``, a folder, a ``.safetensors`` file, or ``organisation/name``.

    ``ValueError`` where it can be none of these, saying what was found instead.
    """
    if name.startswith("playground/"):
        return str(_playground_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        _require_pipeline_folder(folder)
        return str(folder)
    if folder.suffix in _PICKLES:
        raise ValueError(
            f"model {name!r} is a pickle, which can run any code when it is read; mmalign reads safetensors only. Look "
            "for the same model as .safetensors; or, if you trust the file, convert it once with diffusers: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give the folder"
        )
    if folder.suffix == _SINGLE_FILE or folder.is_file():
        if not folder.is_file() or folder.suffix != _SINGLE_FILE:
            what = "is no .safetensors file" if folder.is_file() else "does not exist"
            raise ValueError(f"model {name!r} {what}; give a pipeline folder, a hub id, or a .safetensors checkpoint")
        return str(folder)
    if is_hub_id(name):
        return name
    raise ValueError(
        f"model {name!r} is not an existing folder and not a hub id (organisation/name). "
        f"Give a folder with {INDEX}, a hub id, a .safetensors file, or one of: "
        f"{', '.join(_playground_names()) or 'playground/NAME'}"
    )


def peek(model: str | ModelConfig, *, revision: str | None = None, config: str | None = None) -> ModelInfo:
    """The model's pipeline class and kind, from ``model_index.json`` alone (fetched for a hub id, or from its cache).

    Of a single-file checkpoint the names of its tensors are read as well; the index is that of ``config``. A section
    ``model`` says all of that itself, and its ``drop`` counts as absent. ``ValueError`` where the model does not exist,
    cannot be reached, or is of a class that mmalign does not train.
    """
    if isinstance(model, str):
        model = ModelConfig(name=model, revision=revision, config=config)
    location = resolve_model(model.name)
    file = location if Path(location).is_file() else None
    held = read_single_file(Path(file)) if file else None
    if held is not None:
        location = _config_of(model, held)
    index = json.loads(_index_file(model.name, location, model.revision).read_text(encoding="utf-8"))
    class_name = index.get("_class_name", "")
    if class_name not in KINDS:
        raise ValueError(_unsupported(model.name, class_name, index))
    if held is not None and class_name != held.class_name:
        raise ValueError(
            f"model.config={location} is a {class_name}, but {file} holds the weights of a {held.class_name}; give a "
            "pipeline of the same class"
        )
    kind = KINDS[class_name]
    return ModelInfo(
        model.name, location, kind, class_name, _absent(index, kind, model.drop), file, held.parts if held else ()
    )


def _absent(index: dict[str, Any], kind: Kind, dropped: list[str]) -> tuple[str, ...]:
    absent = {key for key, value in index.items() if value == [None, None]}
    for name, parts in DISPENSABLE.get(kind, {}).items():
        absent |= {part for part in parts if part not in index or name in dropped}
    return tuple(sorted(absent))


def _config_of(model: ModelConfig, held: SingleFile) -> str:
    """Where the configurations of a single-file checkpoint are."""
    if model.config is not None:
        location = resolve_model(model.config)
        if Path(location).is_file():
            raise ValueError(f"model.config={model.config} is a file; give a pipeline folder or a hub id")
        return location
    if held.config is None:
        raise ValueError(
            f"{model.name} does not tell whether it predicts the noise or v. Set model.config to a pipeline of its "
            "kind (a folder or hub id), whose scheduler does: stabilityai/stable-diffusion-2-1 is one with v-prediction"
        )
    return held.config


def is_hub_id(name: str) -> bool:
    """True for ``organisation/name`` that is not one of the playground's."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith("playground/")


def is_lora_folder(folder: Path) -> bool:
    """True where ``folder`` holds LoRA weights as diffusers names them."""
    return (folder / LORA_FILE).is_file()


def find_lora_file(path: str | Path) -> Path:
    """The file with the LoRA weights: ``path`` itself, or the one in the folder, or in ``aligned`` of a run's folder.

    ValueError where there is none.
    """
    given = Path(path).expanduser()
    for file in (given, given / LORA_FILE, given / "aligned" / LORA_FILE):
        if file.is_file() and file.suffix == ".safetensors":
            return file
    if given.is_dir():
        what = f"has no {LORA_FILE}"
    else:
        what = "is no .safetensors file" if given.is_file() else "does not exist"
    raise ValueError(f"{path} {what}; give LoRA weights: a run's folder, what it exported, or a .safetensors file")


def _index_file(name: str, location: str, revision: str | None) -> Path:
    if Path(location).is_dir():
        return Path(location) / INDEX
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(location, INDEX, revision=revision))
    except HUB_ERRORS as error:
        if location == name:
            raise ValueError(explain(error, name, revision=revision)) from error
        raise ValueError(
            f"{name} is a single file, whose configurations and tokenizers come from {location}: "
            f"{explain(error, location, revision=revision)}. Or set model.config to a folder of its kind"
        ) from error


def _playground_names() -> list[str]:
    return sorted(f"playground/{index.parent.name}" for index in PLAYGROUND.glob(f"*/{INDEX}"))


def _playground_folder(name: str) -> Path:
    if name not in _playground_names():
        if (hint := other_family(PLAYGROUND / name.removeprefix("playground/"))) is not None:
            raise ValueError(f"model {name!r} {hint}")
        raise ValueError(f"there is no model {name!r}; the playground has: {', '.join(_playground_names()) or 'none'}")
    return PLAYGROUND / name.removeprefix("playground/")


def other_family(folder: Path) -> str | None:
    """What kind of model is in ``folder``, and the ``family`` that trains it, where that is no image generator."""
    if not (folder / "config.json").is_file() or (folder / INDEX).is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or "model_type" not in config:
        return None
    kind = config["model_type"]
    if "vision_config" in config:
        return f"is a vision-language model ({kind}), which is trained with family: vlm; see recipes llava/ and qwen/"
    return f"is a model of transformers ({kind}), not a diffusers pipeline"


def _require_pipeline_folder(folder: Path) -> None:
    if (folder / INDEX).is_file():
        return
    if is_lora_folder(folder):
        raise ValueError(
            f"{folder} holds LoRA weights, not a whole model. To sample with it: mmalign generate --base NAME "
            f"--aligned {folder} --prompt TEXT --out DIR. To train, give the base model it was made for as model.name"
        )
    if (hint := other_family(folder)) is not None:
        raise ValueError(f"the folder {folder} {hint}")
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"the folder {folder} has no {INDEX}, so it is not a diffusers pipeline (it contains: {found}). "
        "Give a folder written by pipe.save_pretrained(FOLDER)"
    )


def _unsupported(name: str, class_name: str, index: dict) -> str:
    supported = ", ".join(f"{pipeline} ({kind})" for pipeline, kind in KINDS.items())
    if index.get("requires_aesthetics_score"):
        reason = "is an SDXL refiner: it only finishes pictures begun by a base model, from an aesthetic score"
    elif any(word in class_name for word in _EDITING):
        reason = f"is a {class_name}, which edits pictures; preference training needs a text-to-image pipeline"
    else:
        reason = f"is a {class_name or 'pipeline of unknown class'}, which mmalign cannot train"
    return f"model {name!r} {reason}. Supported pipelines: {supported}"
