"""What would otherwise go wrong in silence in a vision-language forward, each as an error that names the row."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmalign.adapters.vlm_batch import VLMBatch
from mmalign.adapters.vlm_families import KINDS, Features, placeholder


def check_batch(batch: VLMBatch, branches: Sequence[str]) -> None:
    """ValueError for branches that the batch lacks, empty responses, and responses to no context.

    That responses hold no image token is checked where they are tokenised (:func:`check_response`), on the CPU.
    """
    unknown = [branch for branch in branches if branch not in batch.responses]
    if unknown or not branches:
        raise ValueError(f"cannot score branches {unknown or list(branches)}: this batch has {sorted(batch.responses)}")
    for branch in branches:
        for row, response in enumerate(batch.responses[branch]):
            name = batch.sample_ids[row] if batch.sample_ids else f"row {row}"
            if not response.input_ids.shape[0]:
                raise ValueError(
                    f"{name}: the {branch} response has no token, so it would be preferred or not for nothing"
                )
            if not 0 <= response.context < len(batch.contexts):
                raise ValueError(f"{name}: {branch} belongs to context {response.context} of {len(batch.contexts)}")
            if not batch.contexts[response.context].length:
                raise ValueError(f"{name}: the prompt of {branch} has no token, so nothing predicts its first one")
            if response.weights is not None and response.weights.shape != response.input_ids.shape:
                raise ValueError(
                    f"{name}: {response.weights.shape[0]} weights for {response.input_ids.shape[0]} tokens of {branch}"
                )


def check_response(model: Any, tokens: Sequence[int], name: str) -> None:
    """ValueError where a response holds a token that stands for a picture, which features would be put into."""
    for kind in KINDS:
        token = placeholder(model, kind)
        if token in tokens:
            raise ValueError(
                f"{name}: the response holds the token {token}, which stands for an {kind} that is not there; take the "
                "mark out of the text"
            )


def check_features(expected: Sequence[tuple[str, Mapping[str, int]]], features: Sequence[Features | None]) -> None:
    """ValueError where a prompt has not exactly as many image tokens as its pictures have features.

    ``expected``: (row, tokens by kind) of each context, ``features`` of the same one, None for text alone.
    transformers compares only the sums over a batch, so 15 and 17 tokens for twice 16 features would pass, each row
    with a bit of the other's picture.
    """
    for (name, placeholders), of in zip(expected, features, strict=True):
        for kind in KINDS:
            tokens, found = placeholders.get(kind, 0), 0 if of is None else of.count(kind)
            if tokens != found:
                raise ValueError(
                    f"{name}: {tokens} {kind} tokens in the prompt, but its {kind}s have {found} features; was the "
                    "prompt cut, or is the processor that of another model?"
                )


def check_deterministic(policy: nn.Module) -> None:
    """ValueError for dropout that is on: policy and reference would not be the same function at the first step."""
    for name, module in policy.named_modules():
        if not module.training:
            continue
        rate = module.p if isinstance(module, nn.Dropout) else 0.0
        for attribute in ("attention_dropout", "dropout", "drop_prob"):
            value = getattr(module, attribute, 0.0)
            rate = max(rate, value) if isinstance(value, float) else rate
        if rate > 0:
            raise ValueError(
                f"{name or type(module).__name__} drops {rate:g} of what it computes while the policy is in training "
                "mode, so log-ratios would not be 0 where policy and reference are the same; set its dropout to 0 "
                "(model.lora.dropout=0) or call eval()"
            )
