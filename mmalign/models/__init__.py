"""Real pipelines: finding and loading them, adapters, encoding, sampling and export.

    components = load_components("playground/tiny-sdxl")
    add_lora(components.denoiser, LoRAConfig(rank=8))
    encoder = Encoder(components, device="cuda")
    ...train components.denoiser...
    save_aligned(components, "aligned", lora=LoRAConfig(rank=8))

Names are imported on first use, so that :func:`peek` can refuse an unknown model before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmalign.models.aligned import load_aligned
    from mmalign.models.card import Card
    from mmalign.models.encode import Encoder, PromptEmbeddings
    from mmalign.models.export import save_aligned
    from mmalign.models.loading import Components, load_components
    from mmalign.models.lora import add_lora, make_trainable, trainable_parameters
    from mmalign.models.names import ModelInfo, peek, resolve_model
    from mmalign.models.sampling import generate

_HOMES = {
    "Card": "card",
    "Components": "loading",
    "Encoder": "encode",
    "ModelInfo": "names",
    "PromptEmbeddings": "encode",
    "add_lora": "lora",
    "generate": "sampling",
    "load_aligned": "aligned",
    "load_components": "loading",
    "make_trainable": "lora",
    "peek": "names",
    "resolve_model": "names",
    "save_aligned": "export",
    "trainable_parameters": "lora",
}

__all__ = [
    "Card",
    "Components",
    "Encoder",
    "ModelInfo",
    "PromptEmbeddings",
    "add_lora",
    "generate",
    "load_aligned",
    "load_components",
    "make_trainable",
    "peek",
    "resolve_model",
    "save_aligned",
    "trainable_parameters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = vars(import_module(f"{__name__}.{_HOMES[name]}"))[name]
    globals()[name] = value
    return value
