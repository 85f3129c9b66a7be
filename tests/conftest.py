"""Shared set-up: beartype checks shapes on public functions in tests only, and nothing may touch the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import torch
from jaxtyping import install_import_hook

# Before any of these is imported, so that every annotated shape is checked while the tests run.
_HOOK = install_import_hook(
    ["mmalign.losses", "mmalign.adapters"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

torch.set_num_threads(1)
