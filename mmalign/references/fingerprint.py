"""A stable hash of weights."""

import hashlib
from collections.abc import Container

import torch
from torch import Tensor, nn


def fingerprint_of(module: nn.Module, *, without: Container[str] = ()) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of a module's weights, except the names in ``without``.

    The names are those of the plain module: what PEFT, DDP and ``torch.compile`` put into them is left out, so a base
    model has one fingerprint with and without adapters around its layers. Independent of the device and of the order
    of registration.
    """
    digest = hashlib.sha256()
    weights = {_plain_name(name): value for name, value in module.state_dict().items() if name not in without}
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)} {weights[name].dtype}\n".encode())
        digest.update(_bytes_of(weights[name]))
    return digest.hexdigest()


def _plain_name(name: str) -> str:
    name = name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".")


def _bytes_of(weight: Tensor) -> memoryview:
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
