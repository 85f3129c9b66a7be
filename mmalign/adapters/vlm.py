"""Vision-language models: log-probs of responses, with prompt and pictures computed once for all that share them."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmalign.adapters.vlm_batch import Context, Response, VLMBatch
from mmalign.adapters.vlm_checks import check_batch, check_deterministic
from mmalign.adapters.vlm_families import (
    Features,
    encode,
    family_of,
    make_context,
    takes_encoded,
    text_model,
    vision_parameters,
)
from mmalign.adapters.vlm_forward import VLMPolicy, response_logps
from mmalign.adapters.vlm_layout import Layout, lay_out
from mmalign.references import Reference, policy_and_reference
from mmalign.types import CHOSEN, REJECTED, BranchScores, Scores

PACK = ("auto", "always", "never")
FLEX_MULTIPLE = 128


class VLMAdapter:
    """logp = sum over response tokens of log p(token | pictures, prompt, tokens before), in at least float32.

    Only response positions meet the vocabulary, in chunks. ``pack``: where branches of a row see the same pictures,
    their responses follow one copy of the prompt, hidden from each other by a mask (dense, or a FlexAttention block
    mask with ``attn_implementation="flex_attention"``), at positions that go on from the prompt's end. ``auto`` packs
    wherever it is exact and else gives every response a prompt of its own (see :meth:`why_not_packed`); ``always``
    makes that an error. Pictures are encoded once per distinct picture set, and once for policy and reference where
    neither differs from the other in encoder and projector. ``row_tokens``: rows of up to so many tokens may hold
    several prompts (fewer padding tokens; with a dense mask the cost grows with the square of the length).
    """

    def __init__(self, pack: str = "auto", *, row_tokens: int | None = None) -> None:
        if pack not in PACK:
            raise ValueError(f"pack={pack!r} is unknown; choose {', '.join(PACK)}")
        if row_tokens is not None and pack == "never":
            raise ValueError("row_tokens would be ignored with pack='never'; leave it out")
        self.pack, self.row_tokens = pack, row_tokens
        self._alike: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
        self._deterministic: WeakSet[nn.Module] = WeakSet()

    def context(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, " prompt"],
        media: Mapping[str, Tensor] | None = None,
        *,
        mm_token_type_ids: Int[Tensor, " prompt"] | None = None,
        key: str | None = None,
        name: str = "the prompt",
    ) -> Context:
        """A prompt for :class:`VLMBatch`, on the CPU, from the processor's outputs for one conversation.

        ``media``: everything about pictures and videos (``pixel_values``, ``image_grid_thw``, ``image_sizes``, ...).
        ``key`` names the media (default: a hash of it). ValueError, with ``name`` in it, where something is missing
        that the model would do without in silence: ``mm_token_type_ids``, grids, pictures, or tokens for them.
        """
        return make_context(
            model_of(model), input_ids, media or {}, mm_token_type_ids=mm_token_type_ids, key=key, name=name
        )

    def score(
        self,
        policy: nn.Module,
        reference: Reference | nn.Module | None,
        batch: VLMBatch,
        branches: Sequence[str] = (CHOSEN, REJECTED),
        *,
        generator: Any = None,  # noqa: ARG002 - the adapters' interface; nothing is drawn here
    ) -> Scores:
        """Sums and lengths of ``branches`` under the policy and, where there is one, the reference; shapes [batch].

        ``policy``: a model with a language head, or :class:`VLMPolicy`, which is what DDP or FSDP may wrap. Errors name
        the row. Needs an autocast context around the whole call, if any.
        """
        branches = tuple(dict.fromkeys(branches))
        model = model_of(policy)
        check_batch(batch, branches)
        self._check_deterministic(policy)
        responses = [response for branch in branches for response in batch.responses[branch]]
        layout = self.layout(model, batch, responses)
        media, which = _distinct(batch.contexts, responses)
        shared: list[Features] | None = None
        if media and takes_encoded(model) and _is_fixed(model):
            with torch.no_grad():
                shared = encode(model, media)

        def run(module: nn.Module) -> Tensor:
            inner = model_of(module)
            own = shared if inner is model or self._sees_alike(model, inner) else None
            if _wraps(module):
                return module(layout, media, which, own)
            return response_logps(inner, layout, media, which, own)

        of_policy, of_reference = policy_and_reference(policy, reference, run)
        return _scores(batch, branches, responses, layout, of_policy, of_reference)

    def layout(self, model: nn.Module, batch: VLMBatch, responses: Sequence[Response]) -> Layout:
        """The rows that ``responses`` are put into; ValueError where ``pack`` is ``always`` and that is not exact."""
        inner = model_of(model)
        reason = self.why_not_packed(inner)
        if reason is not None and self.pack == "always":
            raise ValueError(f"pack='always' is not possible: {reason}; use pack='auto'")
        pack = self.pack != "never" and reason is None
        flex = text_model(inner).config._attn_implementation == "flex_attention"
        multiple = FLEX_MULTIPLE if flex else 1
        names = [batch.name_of(index) for index in range(len(batch.contexts))]
        return lay_out(batch.contexts, responses, names, pack=pack, row_tokens=self.row_tokens, multiple=multiple)

    @staticmethod
    def why_not_packed(model: nn.Module) -> str | None:
        """Why responses cannot share a prompt in this model, or None."""
        inner = model_of(model)
        config = text_model(inner).config
        attention = config._attn_implementation
        if not takes_encoded(inner):
            return "this version of transformers takes no encoded pictures (mm_encoder_outputs, from 5.18 on)"
        if attention not in ("sdpa", "eager", "flex_attention"):
            return f"attn_implementation={attention!r} takes no mask of its own; sdpa, eager and flex_attention do"
        other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
        if other:
            return f"the language model has layers of {', '.join(other)}, which need more than a mask"
        window = getattr(config, "sliding_window", None)
        if window is not None and getattr(config, "use_sliding_window", True):
            return f"the language model attends to a sliding window of {window} tokens"
        return None

    def _check_deterministic(self, policy: nn.Module) -> None:
        """Once per policy in training mode: a look at every module takes a while."""
        if policy.training and policy not in self._deterministic:
            check_deterministic(policy)
            self._deterministic.add(policy)

    def _sees_alike(self, model: Any, other: Any) -> bool:
        """Whether two models have the same encoder and projector; weights are compared once per model."""
        known = self._alike.get(other)
        if known is None or known[0] != id(model):
            mine, theirs = vision_parameters(model), vision_parameters(other)
            alike = mine.keys() == theirs.keys() and _is_fixed(other)
            alike = alike and all(torch.equal(mine[name].to(theirs[name].device), theirs[name]) for name in mine)
            self._alike[other] = known = (id(model), alike)
        return known[1]


def model_of(module: nn.Module) -> Any:
    """The model with a language head inside ``module``, which may be wrapped; ValueError where there is none."""
    for inner in module.modules():
        if isinstance(inner, VLMPolicy):
            return inner.model
    family_of(module)
    return module


def _wraps(module: nn.Module) -> bool:
    return any(isinstance(inner, VLMPolicy) for inner in module.modules())


def _is_fixed(model: Any) -> bool:
    """Whether encoder and projector are neither trained nor adapted, so that policy and reference share them."""
    parameters = vision_parameters(model)
    return not any(value.requires_grad or "lora_" in name for name, value in parameters.items()) and not _is_sharded(
        model
    )


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _distinct(
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


def _scores(
    batch: VLMBatch,
    branches: Sequence[str],
    responses: Sequence[Response],
    layout: Layout,
    of_policy: Tensor,
    of_reference: Tensor | None,
) -> Scores:
    logp = _sums(of_policy, responses, layout)
    ref_logp = None if of_reference is None else _sums(of_reference, responses, layout)
    lengths = torch.tensor(layout.lengths, dtype=logp.dtype).to(logp.device, non_blocking=True)
    scored = {}
    for number, branch in enumerate(branches):
        of = slice(number * batch.size, (number + 1) * batch.size)
        scored[branch] = BranchScores(logp[of], None if ref_logp is None else ref_logp[of], lengths[of])
    return Scores(scored, preference=batch.preference, margin=batch.margin, present=batch.present)


def _sums(logps: Tensor, responses: Sequence[Response], layout: Layout) -> Tensor:
    parts = logps.split(layout.lengths)
    weighted = [
        part if response.weights is None else part * response.weights.to(part.dtype)
        for part, response in zip(parts, responses, strict=True)
    ]
    return torch.stack([part.sum() for part in weighted])
