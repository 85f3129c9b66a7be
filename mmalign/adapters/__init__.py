"""Adapters turn a model and a batch into scores: one number per sample, higher = the model likes it more."""

from mmalign.adapters.diffusion import DiffusionAdapter
from mmalign.adapters.flow import FlowAdapter
from mmalign.adapters.vlm import VLMAdapter
from mmalign.adapters.vlm_batch import Context, Response, VLMBatch
from mmalign.adapters.vlm_forward import VLMPolicy

ADAPTERS = {
    "diffusion": DiffusionAdapter,
    "flow": FlowAdapter,
    "vlm": VLMAdapter,
}

__all__ = [
    "ADAPTERS",
    "Context",
    "DiffusionAdapter",
    "FlowAdapter",
    "Response",
    "VLMAdapter",
    "VLMBatch",
    "VLMPolicy",
]
