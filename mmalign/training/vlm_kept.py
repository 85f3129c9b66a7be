"""What the kept reference scores of a vision-language model depend on: processor, template, and every row's tokens."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from mmalign.adapters import Context, Response
from mmalign.losses import Objective
from mmalign.references import Reference
from mmalign.references.cached import Mark
from mmalign.training.config import Config
from mmalign.training.kept_scores import with_kept_scores

_DIGITS = 16


def with_kept_vlm_scores(
    reference: Reference | None, config: Config, rows: str, branches: Sequence[str], processor: Any
) -> Reference | None:
    """``reference``, with its scores kept in ``reference.path`` where the configuration says so.

    ``rows``: fingerprint of the data.
    """
    if reference is None or config.reference.path is None:
        return reference
    assert config.vlm is not None
    packages = ("torch", "transformers", "peft", "pillow")
    identity = {
        **{f"vlm.{name}": value for name, value in config.vlm.model_dump(mode="json").items()},
        **processor_identity(processor),
        "versions": {name: version(name) for name in packages},
    }
    return with_kept_scores(reference, config, rows, branches, identity)


def kept_problem(config: Config, objective: Objective) -> str | None:
    """Why ``reference: cached`` cannot serve the objective, or None."""
    if config.reference.kind != "cached" or not objective.token_kl_branches:
        return None
    return (
        "cached keeps one number per response, and the objective asks for the KL of every token's distribution "
        f"({', '.join(objective.token_kl_branches)}); use auto"
    )


def processor_identity(processor: Any) -> dict[str, Any]:
    """Settings of the processor by name, and hashes of chat template and tokenizer: what makes tokens and pixels."""
    settings = dict(_flat(json.loads(processor.to_json_string()), "processor"))
    tokenizer = processor.tokenizer
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    settings["tokenizer"] = _hash(type(tokenizer).__name__, words, sorted(tokenizer.special_tokens_map.items()))
    settings["chat_template"] = _hash(json.dumps(processor.chat_template, sort_keys=True))
    return settings


def mark_of(name: str, contexts: Sequence[Context], responses: Mapping[str, Response]) -> Mark:
    """Hashes of what the model is given of a row: ``pixels`` of every branch, corrupted ones too, and ``text``."""
    text = hashlib.sha256()
    for context in contexts:
        text.update(_bytes(context.input_ids))
    for branch, response in responses.items():
        text.update(f"{branch} {response.context}".encode() + _bytes(response.input_ids))
        if response.weights is not None:
            text.update(_bytes(response.weights))
    pixels = _hash(*(context.key for context in contexts))
    return name, {"pixels": pixels, "text": text.hexdigest()[:_DIGITS]}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, value


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:_DIGITS]


def _bytes(tensor: Tensor) -> bytes:
    return f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes()
