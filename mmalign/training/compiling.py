"""``training.compile``: torch.compile for the blocks that repeat inside a model, not for the model as a whole."""

from typing import Any

import torch
from torch import nn

from mmalign.references import Reference
from mmalign.training.sharding import blocks_in, own_blocks

VERSIONS = 64
"""How many versions of a block's code torch may keep; its own 8 is less than a UNet's widths with and without LoRA."""


def compile_for_training(policy: nn.Module, reference: Reference | None) -> None:
    """Compile ``policy`` and what ``reference`` runs, so that both round alike; nothing happens before they run."""
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    compile_blocks(policy)
    if reference is not None:
        with reference.using(policy) as module:
            compile_blocks(module)


def compile_blocks(module: nn.Module, **settings: Any) -> int:
    """Compile each innermost block of ``module`` in place, or the whole where it has none; gives how many there are.

    Blocks are what the model says belongs together (``sharded_blocks``, ``_no_split_modules``): layers of a
    transformer, a UNet's transformer blocks and resnets. Blocks of one shape share their code, so compiling takes a
    fraction of the whole model's time, and adapters that are switched off are a second version of each block, kept
    beside the first: switching compiles nothing. Names of modules and weights stay. ``settings``: for torch.compile.
    """
    names = own_blocks(module)
    innermost = [block for block in blocks_in(module, names) if not blocks_in(block, names)]
    for child in innermost or [module]:
        if child._compiled_call_impl is None:
            child.compile(**settings)
    return len(innermost)
