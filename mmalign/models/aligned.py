"""A base model as it is, or with what a run exported."""

from pathlib import Path
from typing import Any

import torch

from mmalign.models.loading import load_components
from mmalign.models.names import INDEX, LORA_FILE, is_lora_folder

_ADAPTER = "aligned"


def load_aligned(
    base: str, folder: str | Path | None = None, lora_scale: float = 1.0, *, dtype: str | torch.dtype = "float32"
) -> Any:
    """The pipeline ``base``, or aligned by ``folder``: LoRA weights put on the base, or a whole pipeline in its place.

    ``lora_scale``: 1 is the trained adapter, 0 the base, values between mix. ``ValueError`` for a folder that is
    neither, for LoRA weights made for another model, and for a scale that would have no effect.
    """
    if folder is None or not is_lora_folder(Path(folder)):
        if lora_scale != 1.0:
            raise ValueError(
                f"lora_scale {lora_scale} has no effect without LoRA weights; give their folder, or leave it"
            )
        return load_components(base if folder is None else _pipeline_folder(Path(folder)), dtype=dtype).pipe
    components = load_components(base, dtype=dtype)
    mismatch = f"the LoRA weights in {folder} do not fit {base!r}; give the base model that their README.md names"
    try:
        components.pipe.load_lora_weights(str(folder), adapter_name=_ADAPTER)
    except (RuntimeError, ValueError) as error:
        raise ValueError(mismatch) from error
    # diffusers only logs a warning where no key belongs to the denoiser, and would go on with the bare base model.
    if _ADAPTER not in components.pipe.get_list_adapters().get(components.denoiser_key, []):
        raise ValueError(mismatch)
    components.pipe.set_adapters([_ADAPTER], adapter_weights=[lora_scale])
    return components.pipe


def _pipeline_folder(folder: Path) -> str:
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is neither LoRA weights ({LORA_FILE}) nor a pipeline ({INDEX}); "
            "give the folder that a run exported"
        )
    return str(folder)
