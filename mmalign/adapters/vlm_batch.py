"""What a vision-language adapter scores: prompts with their pictures, and responses that continue them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """A prompt as a model reads it, with the pictures and videos that it holds.

    ``input_ids`` [prompt], placeholders already as many as the encoder gives features. ``positions`` [axes, prompt +
    1]: rotary positions (one axis, or three for M-RoPE), the last of them that of the first token of a response.
    ``media``: what the processor made of pictures and videos, by its own names; empty for text alone. ``placeholders``:
    how many tokens of ``image`` and ``video`` stand in ``input_ids``. ``key``: equal keys, equal media, encoded once.
    Made by :meth:`mmalign.adapters.VLMAdapter.context`.
    """

    input_ids: Int[Tensor, " prompt"]
    positions: Int[Tensor, "axes positions"]
    media: Mapping[str, Tensor] = field(default_factory=dict)
    placeholders: Mapping[str, int] = field(default_factory=dict)
    key: str = ""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class Response:
    """A response to ``contexts[context]`` of its batch: token ids with the end token, and what each of them counts.

    ``weights`` [tokens]: factors on the log-probs in the sum (None: 1 each); ``length`` stays the number of tokens.
    """

    context: int
    input_ids: Int[Tensor, " tokens"]
    weights: Float[Tensor, " tokens"] | None = None


@dataclass(frozen=True)
class VLMBatch:
    """Rows of a vision-language model. ``responses``: branch -> one response per row.

    Branches of a row that see the same pictures name the same context, which is what the adapter shares. Two rows may
    share one, too. ``present``: branch -> [batch], rows that count; ``sample_ids`` name rows in errors.
    """

    contexts: tuple[Context, ...]
    responses: Mapping[str, tuple[Response, ...]]
    preference: Float[Tensor, " batch"] | None = None
    margin: Float[Tensor, " batch"] | None = None
    present: Mapping[str, Bool[Tensor, " batch"]] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(next(iter(self.responses.values())))

    def name_of(self, context: int) -> str:
        """The row that ``contexts[context]`` belongs to, for errors."""
        for responses in self.responses.values():
            for row, response in enumerate(responses):
                if response.context == context:
                    return self.sample_ids[row] if self.sample_ids else f"row {row}"
        return f"context {context}"

    def to(self, device: torch.device | str) -> "VLMBatch":
        """The same batch on ``device``."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "VLMBatch":
        """The batch with ``change`` applied to every tensor."""

        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        contexts = tuple(
            replace(
                context,
                input_ids=change(context.input_ids),
                positions=change(context.positions),
                media={name: change(value) for name, value in context.media.items()},
            )
            for context in self.contexts
        )
        responses = {
            branch: tuple(replace(one, input_ids=change(one.input_ids), weights=maybe(one.weights)) for one in many)
            for branch, many in self.responses.items()
        }
        return replace(
            self,
            contexts=contexts,
            responses=responses,
            preference=maybe(self.preference),
            margin=maybe(self.margin),
            present={branch: change(rows) for branch, rows in self.present.items()},
        )
