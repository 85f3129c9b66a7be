"""Writing the result: LoRA weights or a whole pipeline, as plain diffusers reads them, with a model card."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict

from mmalign.models.card import Card, card_text
from mmalign.models.loading import Components, load_pipeline
from mmalign.models.lora import has_lora
from mmalign.models.names import INDEX, is_lora_folder, peek
from mmalign.training.config import LoRAConfig


def save_aligned(
    components: Components,
    folder: str | Path,
    lora: LoRAConfig | None,
    base_name: str | None = None,
    card: Card | None = None,
) -> Path:
    """Write the trained denoiser to ``folder``, safetensors only, and give the folder back.

    With ``lora``: adapter weights for ``pipe.load_lora_weights(folder)``, alpha and rank patterns included. Without: a
    complete pipeline for ``from_pretrained(folder)``. The folder appears whole or not at all; an export that is already
    there is replaced, anything else is refused. ``base_name``: the base model as the card should call it.
    """
    folder = Path(folder)
    if (lora is not None) != has_lora(components.denoiser):
        raise ValueError(
            "the denoiser has adapters but lora is None: pass the LoRAConfig it was trained with"
            if lora is None
            else "a LoRAConfig was given but the denoiser has no adapters: call add_lora(denoiser, config) first"
        )
    _refuse_foreign(folder)
    base_name = base_name or components.config.name
    with _atomic(folder) as partial:
        if lora is not None:
            _save_lora(components, partial)
        else:
            _complete_pipeline(components).save_pretrained(partial, safe_serialization=True)
        text = card_text(
            card or Card(),
            folder=folder,
            base_name=base_name,
            pipeline_class=type(components.pipe).__name__,
            lora_scale=None if lora is None else lora.alpha / lora.rank,
            absent=_required_but_absent(components),
        )
        (partial / "README.md").write_text(text, encoding="utf-8")
    return folder


def _save_lora(components: Components, folder: Path) -> None:
    """diffusers reads alpha from the adapter metadata; without it, it would assume alpha == rank."""
    key, denoiser = components.denoiser_key, components.denoiser
    adapter: Any = denoiser.peft_config["default"]  # type: ignore[index]
    arguments = {
        f"{key}_lora_layers": get_peft_model_state_dict(denoiser),
        f"{key}_lora_adapter_metadata": adapter.to_dict(),
    }
    components.pipe.save_lora_weights(folder, safe_serialization=True, **arguments)


def _complete_pipeline(components: Components) -> Any:
    """The pipeline with the trained denoiser and every other part at full precision, released parts loaded again."""
    info = peek(components.config.name, revision=components.config.revision)
    stored = components.config.model_copy(update={"dtype": "float32"})
    return load_pipeline(stored, info, **{components.denoiser_key: components.denoiser})


def _required_but_absent(components: Components) -> list[str]:
    info = peek(components.config.name, revision=components.config.revision)
    optional = type(components.pipe)._optional_components
    return [name for name in info.absent if name not in optional]


def _refuse_foreign(folder: Path) -> None:
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (is_lora_folder(folder) or (folder / INDEX).is_file())
    ):
        raise ValueError(f"{folder} exists and is not an exported model; choose another folder or remove it")


@contextmanager
def _atomic(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` when the block ends well and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)


def _flush(path: Path) -> None:
    """fsync: after a power cut the file holds what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
