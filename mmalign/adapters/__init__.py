"""Adapters turn a model and a batch into scores: one number per sample, higher = the model likes it more."""

from mmalign.adapters.diffusion import DiffusionAdapter

ADAPTERS = {
    "diffusion": DiffusionAdapter,
}

__all__ = ["ADAPTERS", "DiffusionAdapter"]
