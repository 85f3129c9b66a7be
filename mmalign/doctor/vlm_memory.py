"""Memory of one device while a vision-language model is trained: the parts of ``memory.py``, counted for tokens.

Activations are those of the language model for the longest rows that were looked at, counted on the meta device, and
the logits of one chunk. A vision encoder that is trained keeps activations that are not counted here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters import VLMAdapter, VLMPolicy
from mmalign.adapters.vlm_families import text_model
from mmalign.adapters.vlm_forward import CHUNK_VALUES
from mmalign.doctor.activations import counting_saved_bytes, fused_attention
from mmalign.doctor.memory import MemoryEstimate, state_bytes
from mmalign.losses import Objective
from mmalign.models import make_trainable
from mmalign.models.vlm import VLMComponents, freeze_parts, lora_layers_of
from mmalign.training.config import Config
from mmalign.training.image_reference import reference_kind
from mmalign.training.vlm_rows import VLMItem, VLMRows

LOGIT_COPIES = 3  # of a chunk: what the head gives, the same in float32, and its gradient


def predict_vlm_memory(
    config: Config, components: VLMComponents, rows: VLMRows, items: Sequence[VLMItem]
) -> MemoryEstimate:
    """The estimate for one process without sharding; ``components`` without weights are made trainable here."""
    assert config.vlm is not None
    training, lora = config.training, config.model.lora
    shape, tokens = _largest_batch(config, rows, items)
    model = components.model.to(getattr(torch, config.model.dtype))
    policy, parts = VLMPolicy(model), components.info.parts
    adapted = None if lora is None else lora_layers_of(model, lora, config.vlm.freeze, parts)
    make_trainable(policy, adapted)
    if lora is None:
        freeze_parts(model, config.vlm.freeze, parts)
    trained = [value for value in policy.parameters() if value.requires_grad]
    count = sum(value.numel() for value in trained)
    weights = sum(value.numel() * value.element_size() for value in policy.parameters())
    kind = reference_kind(config, Objective(config.objective))
    whole = kind in ("snapshot", "ema") and lora is None
    copied = weights - (4 * count if lora else 0) if kind == "frozen" else weights if whole else 4 * count
    return MemoryEstimate(
        weights=weights,
        reference=0 if kind in ("none", "lora_off") else copied,
        gradients=4 * count,
        optimizer=state_bytes(training.optimizer, trained),
        average=4 * count if training.ema else 0,
        encoders=0,
        activations=_activations(config, policy, shape) + _logits(policy, tokens),
    )


def _largest_batch(config: Config, rows: VLMRows, items: Sequence[VLMItem]) -> tuple[tuple[int, int], int]:
    """(rows, tokens per row) of a micro-batch of the longest rows, as they are laid out, and its response tokens."""
    assert config.vlm is not None
    usable = [item for item in items if not item.unusable]
    longest = sorted(usable, key=_tokens, reverse=True)[: config.training.batch_size]
    longest = [longest[index % len(longest)] for index in range(config.training.batch_size)]
    batch = rows.collate(longest).batch
    responses = [response for many in batch.responses.values() for response in many]
    adapter = VLMAdapter(config.vlm.pack, row_tokens=config.vlm.row_tokens)
    layout = adapter.layout(rows.model, batch, responses)
    return (layout.input_ids.shape[0], layout.input_ids.shape[1]), len(layout.targets)


def _tokens(item: VLMItem) -> int:
    return sum(c.length for c in item.contexts) + sum(len(r.input_ids) for r in item.responses.values())


def _activations(config: Config, policy: VLMPolicy, shape: tuple[int, int]) -> int:
    """Bytes that the language model's forward keeps; autocast's casts of trained weights are among them."""
    if config.training.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.training.mixed_precision)
    casts = 0
    if low is not None and config.model.lora is None:
        casts = 2 * sum(value.numel() for value in policy.parameters() if value.requires_grad)
        policy.to(low)
    model: Any = policy.model
    embeddings: Any = model.get_input_embeddings().weight
    text: Any = text_model(model)
    given: Tensor = torch.empty(*shape, embeddings.shape[1], device="meta", dtype=low or embeddings.dtype)
    # Whole, as packed rows have it: made from nothing, transformers would look into tensors that hold nothing.
    mask = torch.empty(shape[0], 1, shape[1], shape[1], device="meta", dtype=torch.bool)
    policy.train()
    with fused_attention(), counting_saved_bytes(policy) as saved:
        text(inputs_embeds=given.requires_grad_(), attention_mask=mask, use_cache=False)
        return saved() + casts


def _logits(policy: VLMPolicy, tokens: int) -> int:
    head: Any = policy.model.get_output_embeddings()
    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]
    return LOGIT_COPIES * 4 * min(CHUNK_VALUES, tokens * vocabulary)
