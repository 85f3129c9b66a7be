"""Attention that cannot reach some tokens, in any family: for hiding parts of a picture from the language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.models.vlm_names import PARTS


@contextmanager
def hidden_from_attention(model: nn.Module, hidden: Bool[Tensor, "batch tokens"]) -> Iterator[None]:
    """Inside the block no token of a sequence that begins with ``hidden``'s tokens attends to those that it marks.

    The marked tokens keep their places (position ids), and generation with a cache hides them at every step. It works
    on the language model inside ``model`` (a class with a language head of a family in ``PARTS``), so what the vision
    tower sees stays as it is. Later tokens than ``hidden`` has are not hidden.
    """
    config: Any = model.config
    text = model.get_submodule(PARTS[config.model_type].text)

    def hide(_module: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, past = given.get("attention_mask"), given.get("past_key_values")
        if mask is None:  # generation leaves out a mask of nothing but ones
            length = given["inputs_embeds"].shape[1] + (0 if past is None else past.get_seq_length())
            mask = hidden.new_ones((len(hidden), length), dtype=torch.long)
        if mask.dim() != 2:
            raise ValueError(f"attention of {type(text).__name__} cannot be hidden: a mask of {mask.dim()} dimensions")
        shown = mask.clone()
        known = min(mask.shape[1], hidden.shape[1])
        shown[:, :known] = mask[:, :known] * ~hidden[:, :known]
        return args, {**given, "attention_mask": shown}

    handle = text.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
