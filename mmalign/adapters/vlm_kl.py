"""How far a policy's next tokens are from the reference's: KL(reference || policy) at every token of some responses.

The reference's distributions are held whole, [tokens, vocabulary] in float32 (120 MB for 200 tokens of a vocabulary of
152,000), for as long as a batch takes; the policy's are made in chunks, a second time in the backward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.adapters.vlm_layout import Layout

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distributions:
    """Log-probs of every token of the vocabulary, ``logp`` [tokens, vocabulary], at the targets ``tokens``."""

    tokens: Int[Tensor, " tokens"]
    logp: Float[Tensor, "tokens vocabulary"]


def targets_of(layout: Layout, responses: Sequence[bool]) -> Tensor:
    """Numbers of the targets that belong to the responses that are True, on the layout's device."""
    numbers, start = [], 0
    for wanted, length in zip(responses, layout.lengths, strict=True):
        numbers += range(start, start + length) if wanted else ()
        start += length
    return torch.tensor(numbers, dtype=torch.long).to(layout.targets.device, non_blocking=True)


def log_distributions(logits: Tensor) -> Tensor:
    """log_softmax in at least float32, whatever autocast is on."""
    with torch.autocast(logits.device.type, enabled=False):
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def divergences(logits: Tensor, reference: Tensor) -> Tensor:
    """sum_v p(v) (log p(v) - log q(v)) by rows, log p = ``reference``, q of ``logits``; 0 where they are equal."""
    difference = reference - log_distributions(logits)
    return (reference.exp() * difference).sum(-1)
