"""One forward of a vision-language model: hidden states of the rows, then log-probs of response tokens alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.checkpoint import checkpoint

from mmalign.adapters.vlm_checks import check_features
from mmalign.adapters.vlm_families import (
    Features,
    encode,
    encoder_outputs,
    family_of,
    stacked,
    takes_encoded,
    text_model,
    vision_parameters,
)
from mmalign.adapters.vlm_kl import Distributions, Head, divergences, log_distributions
from mmalign.adapters.vlm_layout import PADDING, Layout

CHUNK_VALUES = 2**25
"""Logits that exist at a time: 128 MiB in float32."""
Asked = Tensor | Distributions | None
"""What is asked of a forward beside log-probs; see :func:`response_logps`."""


class VLMPolicy(nn.Module):
    """A vision-language model whose forward gives response log-probs: what DDP, FSDP and the trainer run and train.

    ``model``: the class with a language head. A forward that returned logits would have to make all of them, and what
    bypassed the wrapper's forward would bypass its gradient reduction.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        family_of(model)
        self.model = model

    def forward(
        self,
        layout: Layout,
        media: Sequence[Mapping[str, Tensor]],
        which: Sequence[int],
        features: Sequence[Features] | None = None,
        asked: Asked = None,
    ) -> Any:
        """See :func:`response_logps`.

        With several processes every trained parameter of the encoder is part of the graph, also where the rows have no
        picture: DDP waits for the gradient of each, and which rows are words alone differs between processes. It is 0
        then, and for layers that the model does not use.
        """
        logps = response_logps(self.model, layout, media, which, features, asked)
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        trained = [value for value in vision_parameters(self.model).values() if value.requires_grad]
        if not (together and trained and torch.is_grad_enabled()):
            return logps
        return logps + 0.0 * torch.stack([value.sum() for value in trained]).sum()

    def add_adapter(self, config: Any, adapter_name: str) -> None:
        """Add a LoRA to the model inside."""
        self.model.add_adapter(config, adapter_name=adapter_name)

    @property
    def sharded_blocks(self) -> frozenset[str]:
        """Classes of layers that FSDP gathers one by one: the language model's, which every process runs in every step.

        The encoder is gathered with the rest, because a process whose rows have no picture does not run it, and would
        leave the others waiting for its share of every layer.
        """
        return frozenset(type(layer).__name__ for layer in text_model(self.model).layers)

    @property
    def peft_config(self) -> Mapping[str, Any]:
        """Adapters by name; empty without any."""
        return getattr(self.model, "peft_config", {})

    def enable_gradient_checkpointing(self) -> None:
        """Run layers a second time in the backward instead of keeping their activations."""
        settings = {"use_reentrant": False}
        if hasattr(self.model, "activation_checkpointing_enable"):  # what newer versions of transformers call it
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        else:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def response_logps(
    model: Any,
    layout: Layout,
    media: Sequence[Mapping[str, Tensor]],
    which: Sequence[int],
    features: Sequence[Features] | None = None,
    asked: Asked = None,
) -> Any:
    """log p of every one of ``layout.targets``, [tokens], in at least float32.

    ``media``: distinct pictures of the batch; ``which``: context -> its place in ``media``, -1 for text alone.
    ``features``: ``media`` already encoded; None encodes it here, once each. ``asked``: numbers of targets, for the
    pair of log-probs and :class:`Distributions` at these; or the reference's distributions, whose divergences from this
    model's are then appended to the log-probs.
    """
    if takes_encoded(model):
        if features is None:
            features = encode(model, media)
        in_order = [features[which[context]] if which[context] >= 0 else None for context in layout.contexts]
        check_features(layout.expected, in_order)
        given: dict[str, Any] = {}
        if media:
            given["mm_encoder_outputs"] = encoder_outputs(family_of(model), [of for of in in_order if of is not None])
        states = _hidden(model, layout, given).flatten(0, 1)
    else:
        states = _row_by_row(model, layout, media, which)
    states, head = states[layout.hidden], model.get_output_embeddings()
    logps = token_logps(states, layout.targets, head)
    if isinstance(asked, Distributions):
        return torch.cat([logps, token_kls(states[asked.tokens], asked.logp, head)])
    if asked is not None:
        return logps, Distributions(asked, log_distributions(head(states[asked])))
    return logps


def token_logps(
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    *,
    values: int = CHUNK_VALUES,
) -> Float[Tensor, " tokens"]:
    """log_softmax(head(hidden))[target] in at least float32, without ever holding more than ``values`` logits.

    The head runs in its own precision. Chunks are computed a second time in the backward.
    """

    def chunk(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1)

    return _in_chunks(chunk, head, values, hidden, targets)


def token_kls(
    hidden: Float[Tensor, "tokens width"],
    reference: Float[Tensor, "tokens vocabulary"],
    head: Head,
    *,
    values: int = CHUNK_VALUES,
) -> Float[Tensor, " tokens"]:
    """KL(reference || softmax(head(hidden))) of every token; ``reference`` as log-probs. Chunked as the log-probs."""
    return _in_chunks(lambda states, of: divergences(head(states), of), head, values, hidden, reference)


def _in_chunks(chunk: Callable[..., Tensor], head: Head, values: int, *rows: Tensor) -> Tensor:
    """``chunk`` of successive parts of ``rows``, in which ``head`` makes at most ``values`` logits."""
    vocabulary = getattr(head, "out_features", None) or getattr(head, "weight").shape[0]  # noqa: B009 - a LoRA layer
    size, again = max(1, values // vocabulary), torch.is_grad_enabled()
    parts = zip(*(of.split(size) for of in rows), strict=True)
    return torch.cat(
        [
            checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) if again else chunk(*part)
            for part in parts
        ]
    )


def _hidden(model: Any, layout: Layout, given: Mapping[str, Any]) -> Tensor:
    positions = layout.positions if layout.positions.shape[0] > 1 else layout.positions[0]
    return model.model(
        input_ids=layout.input_ids,
        attention_mask=_mask(model, layout),
        position_ids=positions,
        use_cache=False,
        **given,
    ).last_hidden_state


def _mask(model: Any, layout: Layout) -> Any:
    """Which tokens see which, in the form that the model's attention takes."""
    if not layout.packed:
        return (layout.group != PADDING).long()
    attention = text_model(model).config._attn_implementation
    if attention == "flex_attention":
        return _block_mask(layout)
    keep = layout.visible()
    if attention != "eager":
        return keep  # a bool works in any precision
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)


def _block_mask(layout: Layout) -> Any:
    """:meth:`Layout.visible` for FlexAttention."""
    group, part, (rows, length) = layout.group, layout.part, layout.group.shape

    return create_block_mask(
        lambda row, head, query, key: (  # noqa: ARG005 - FlexAttention's signature
            (key <= query)
            & (group[row, key] == group[row, query])
            & ((part[row, key] == 0) | (part[row, key] == part[row, query]))
        ),
        rows,
        None,
        length,
        length,
        device=str(group.device),
    )


def _row_by_row(model: Any, layout: Layout, media: Sequence[Mapping[str, Tensor]], which: Sequence[int]) -> Tensor:
    """Hidden states where pictures cannot be handed over encoded (transformers before 5.18).

    One row at a time, because the model compares image tokens with features only in sum over what it is given.
    """
    states = []
    for index in range(layout.input_ids.shape[0]):
        row, family = layout.row(index), family_of(model)
        items = [media[which[context]] for context in row.contexts if which[context] >= 0]
        names = [*family.image, *family.video]
        states.append(_hidden(model, row, stacked(items, [name for name in names if any(name in i for i in items)])))
    return torch.cat(states).flatten(0, 1)
