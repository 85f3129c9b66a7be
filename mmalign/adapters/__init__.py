"""Adapters turn a model and a batch into scores: one number per sample, higher = the model likes it more."""

from mmalign.adapters.diffusion import DiffusionAdapter
from mmalign.adapters.flow import FlowAdapter

ADAPTERS = {
    "diffusion": DiffusionAdapter,
    "flow": FlowAdapter,
}

__all__ = ["ADAPTERS", "DiffusionAdapter", "FlowAdapter"]
