"""From a batch to what a forward needs of it, and from log-probs of tokens back to scores of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.adapters.vlm_batch import Context, Response, VLMBatch
from mmalign.adapters.vlm_layout import Layout
from mmalign.types import BranchScores


def distinct_media(
    contexts: Sequence[Context], responses: Sequence[Response]
) -> tuple[list[Mapping[str, Tensor]], list[int]]:
    """Every picture set that ``responses`` need, once; and each context's place among them, -1 without pictures."""
    places: dict[str, int] = {}
    media: list[Mapping[str, Tensor]] = []
    which = [-1] * len(contexts)
    for index in dict.fromkeys(response.context for response in responses):
        context = contexts[index]
        if not context.media:
            continue
        if context.key not in places:
            places[context.key] = len(media)
            media.append(context.media)
        which[index] = places[context.key]
    return media, which


def scores_of(
    batch: VLMBatch,
    branches: Sequence[str],
    responses: Sequence[Response],
    layout: Layout,
    of_policy: Tensor,
    of_reference: Tensor | None,
) -> dict[str, BranchScores]:
    """Sums and lengths by branch, [batch] each, of log-probs [tokens] in the order of ``responses``."""
    logp = _sums(of_policy, responses, layout)
    ref_logp = None if of_reference is None else _sums(of_reference, responses, layout)
    lengths = torch.tensor(layout.lengths, dtype=logp.dtype).to(logp.device, non_blocking=True)
    scored = {}
    for number, branch in enumerate(branches):
        of = slice(number * batch.size, (number + 1) * batch.size)
        scored[branch] = BranchScores(logp[of], None if ref_logp is None else ref_logp[of], lengths[of])
    return scored


def with_kls(
    scored: Mapping[str, BranchScores],
    branches: Sequence[str],
    having: Sequence[str],
    rows: int,
    layout: Layout,
    kls: Tensor,
) -> dict[str, BranchScores]:
    """``scored`` with the sums of ``kls``, whose tokens are those of the branches ``having``, in order."""
    lengths = [n for branch in having for n in layout.lengths[branches.index(branch) * rows :][:rows]]
    sums = torch.stack([part.sum() for part in kls.split(lengths)]).split(rows)
    return {**scored, **{b: replace(scored[b], token_kl=of) for b, of in zip(having, sums, strict=True)}}


def _sums(logps: Tensor, responses: Sequence[Response], layout: Layout) -> Tensor:
    parts = logps.split(layout.lengths)
    weighted = [
        part if response.weights is None else part * response.weights.to(part.dtype)
        for part, response in zip(parts, responses, strict=True)
    ]
    return torch.stack([part.sum() for part in weighted])
