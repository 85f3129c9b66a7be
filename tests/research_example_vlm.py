"""DPO of a vision-language model in your own loop: no configuration, no trainer."""

import torch

from mmalign.adapters import Response, VLMAdapter, VLMBatch
from mmalign.losses import dpo
from mmalign.models.vlm_encode import VLMEncoder
from mmalign.references import FrozenReference
from mmalign.types import ImagePart, Message


def align(model, batches, *, learning_rate=1e-6):
    adapter, reference = VLMAdapter(), FrozenReference(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for batch in batches:
        scores = adapter.score(model, reference, batch)
        loss = dpo(scores.chosen_logratio, scores.rejected_logratio, beta=0.1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def batch_of(model, processor, rows):
    """``rows``: (picture, question, chosen, rejected)."""
    encoder, contexts, responses = VLMEncoder(processor, max_length=2048), [], {"chosen": [], "rejected": []}
    for number, (picture, question, *answers) in enumerate(rows):
        prompt = encoder.prompt([Message("user", (ImagePart(0), question))], [picture], f"row {number}")
        types = prompt.mm_token_type_ids
        contexts.append(VLMAdapter().context(model, prompt.input_ids, prompt.media, mm_token_type_ids=types))
        for side, text in zip(responses.values(), answers, strict=True):
            side.append(Response(number, encoder.answer(prompt, text, f"row {number}").input_ids))
    return VLMBatch(tuple(contexts), {branch: tuple(many) for branch, many in responses.items()})
