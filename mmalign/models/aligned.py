"""A base model as it is, or with what a run exported."""

from pathlib import Path
from typing import Any

import torch

from mmalign.models.loading import load_components
from mmalign.models.lora_files import read_lora
from mmalign.models.lora_weights import load_adapter, merge, set_active, set_modules
from mmalign.models.names import INDEX, LORA_FILE, is_lora_folder
from mmalign.training.config import ModelConfig

_ADAPTER = "aligned"


def load_aligned(
    base: str | ModelConfig,
    folder: str | Path | None = None,
    lora_scale: float = 1.0,
    *,
    dtype: str | torch.dtype = "float32",
) -> Any:
    """The pipeline ``base``, or aligned by ``folder``: LoRA weights put on the base, or a whole pipeline in its place.

    ``folder`` may be a ``.safetensors`` file with a LoRA in the layout of diffusers or of kohya. ``lora_scale``: 1 is
    the trained adapter (and modules trained in full), 0 the base, values between mix. A section ``base`` loads the base
    as it says (``dtype`` is then its own). ``ValueError`` for what is neither, for LoRA weights made for another model,
    and for a scale that would have no effect.
    """
    if folder is None or not is_lora(Path(folder)):
        if lora_scale != 1.0:
            raise ValueError(
                f"lora_scale {lora_scale} has no effect without LoRA weights; give their folder, or leave it"
            )
        return load_components(base if folder is None else _exported(base, Path(folder)), dtype=dtype).pipe
    components = load_components(base, dtype=dtype)
    denoiser: Any = components.denoiser
    try:
        weights = read_lora(folder, denoiser)
    except ValueError as error:
        hint = "give the base model that it was trained on (the README.md of an export names it)"
        name = components.config.name
        raise ValueError(f"the LoRA in {folder} and the base model {name!r} do not fit: {error}; {hint}") from error
    if weights.is_dora and lora_scale != 1.0:
        # Less of the product alone would leave the trained lengths of the rows, and 0 would not be the base model.
        merge(denoiser, weights, lora_scale)
        return components.pipe
    set_modules(denoiser, weights.modules, lora_scale)
    if weights.layers:
        load_adapter(denoiser, weights, _ADAPTER)
        set_active(denoiser, [_ADAPTER])
        denoiser.set_adapters([_ADAPTER], [lora_scale])
        denoiser.requires_grad_(False)
    return components.pipe


def is_lora(path: Path) -> bool:
    """True for a folder with LoRA weights, and for a ``.safetensors`` file."""
    return is_lora_folder(path) or (path.is_file() and path.suffix == ".safetensors")


def _exported(base: str | ModelConfig, folder: Path) -> str | ModelConfig:
    """The pipeline in ``folder``, which holds every choice of ``base`` but the precisions."""
    name = _pipeline_folder(folder)
    if isinstance(base, str):
        return name
    return ModelConfig(
        name=name, dtype=base.dtype, vae_dtype=base.vae_dtype, max_sequence_length=base.max_sequence_length
    )


def _pipeline_folder(folder: Path) -> str:
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is neither LoRA weights ({LORA_FILE}) nor a pipeline ({INDEX}); "
            "give the folder that a run exported, or a .safetensors file with a LoRA"
        )
    return str(folder)
