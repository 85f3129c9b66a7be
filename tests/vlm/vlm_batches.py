"""Batches for tiny vision-language models, and the plain forward that the adapter has to agree with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters import Context, Response, VLMAdapter, VLMBatch
from tests.vlm.tiny_vlms import BOS, EOS, IMAGE, VIDEO, VISION_END, VISION_START, pictures, tokens_of

FIRST_WORD = 10
ADAPTER = VLMAdapter()


def words(count: int, *, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, 120, (count,), generator=random)


def types_of(ids: Tensor) -> Tensor:
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def prompt(model: Any, kind: str, media: Mapping[str, Tensor], *, seed: int = 0) -> Context:
    """Some words, the pictures, some words."""
    ids = [torch.tensor([BOS]), words(3, seed=seed)]
    if media:
        number = len(media.get("image_grid_thw", media.get("image_sizes", [0])))
        each = tokens_of(model, dict(media)) // number
        for index in range(number):
            ids += [torch.tensor([VISION_START] + [IMAGE] * each + [VISION_END]), words(1 + index, seed=seed + 9)]
    ids = torch.cat([*ids, words(4, seed=seed + 1)])
    return ADAPTER.context(model, ids, media, mm_token_type_ids=types_of(ids))


def response(context: int, count: int, *, seed: int) -> Response:
    return Response(context, torch.cat([words(count - 1, seed=seed), torch.tensor([EOS])]))


def pair_batch(model: Any, kind: str) -> VLMBatch:
    """Four pairs: one picture, a wider one, two pictures, and text alone."""
    media = [
        pictures(kind, seed=1),
        pictures(kind, seed=2, wide=True),
        pictures(kind, seed=3, number=2),
        {},
    ]
    contexts = tuple(prompt(model, kind, item, seed=10 * index) for index, item in enumerate(media))
    lengths = [(6, 4), (3, 9), (1, 2), (5, 5)]
    responses = {
        branch: tuple(response(row, many[side], seed=100 * side + row) for row, many in enumerate(lengths))
        for side, branch in enumerate(("chosen", "rejected"))
    }
    return VLMBatch(contexts, responses, sample_ids=tuple(f"sample-{row}" for row in range(4)))


def part_of(batch: VLMBatch, rows: Sequence[int]) -> VLMBatch:
    """Some rows of a batch; the contexts stay."""
    responses = {branch: tuple(many[row] for row in rows) for branch, many in batch.responses.items()}
    return VLMBatch(batch.contexts, responses, sample_ids=tuple(batch.sample_ids[row] for row in rows))


def plain_logp(model: Any, context: Context, ids: Tensor) -> Tensor:
    """The sum of log-probs by the model's own forward, for this prompt and this response alone."""
    row = torch.cat([context.input_ids, ids])
    media = dict(context.media)
    if "image_grid_thw" in media or "video_grid_thw" in media:
        media["mm_token_type_ids"] = types_of(row)[None]
    logits = model(input_ids=row[None], attention_mask=torch.ones_like(row)[None], use_cache=False, **media).logits[0]
    predicted = torch.log_softmax(logits[context.length - 1 : -1], dim=-1)
    return predicted.gather(-1, ids[:, None]).sum()


def plain_scores(model: Any, batch: VLMBatch, branch: str) -> Tensor:
    return torch.stack(
        [plain_logp(model, batch.contexts[one.context], one.input_ids) for one in batch.responses[branch]]
    )
