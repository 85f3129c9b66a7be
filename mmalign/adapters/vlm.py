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
from mmalign.adapters.vlm_forward import Asked, VLMPolicy, response_logps
from mmalign.adapters.vlm_kl import targets_of
from mmalign.adapters.vlm_layout import Layout, lay_out
from mmalign.adapters.vlm_sums import distinct_media, scores_of, with_kls
from mmalign.references import Reference, as_reference, policy_and_reference
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

    ``token_kl``: branches that are also told KL(reference || policy) of, summed over the tokens, for which both
    distributions are made whole. ``held``: branches whose logp is read as a constant: they are scored without
    gradients, and by the policy alone.
    """

    def __init__(
        self,
        pack: str = "auto",
        *,
        row_tokens: int | None = None,
        token_kl: Sequence[str] = (),
        held: Sequence[str] = (),
    ) -> None:
        if pack not in PACK:
            raise ValueError(f"pack={pack!r} is unknown; choose {', '.join(PACK)}")
        if row_tokens is not None and pack == "never":
            raise ValueError("row_tokens would be ignored with pack='never'; leave it out")
        self.pack, self.row_tokens = pack, row_tokens
        self.token_kl, self.held = tuple(token_kl), tuple(held)
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
        check_batch(batch, branches)
        self._check_deterministic(policy)
        scored: dict[str, BranchScores] = {}
        trained = [branch for branch in branches if branch not in self.held]
        if trained:
            scored |= self._scored(policy, reference, batch, trained)
        if len(trained) < len(branches):
            with torch.no_grad():
                scored |= self._scored(policy, None, batch, [branch for branch in branches if branch in self.held])
        in_order = {branch: scored[branch] for branch in branches}
        return Scores(in_order, preference=batch.preference, margin=batch.margin, present=batch.present)

    def _scored(
        self, policy: nn.Module, reference: Reference | nn.Module | None, batch: VLMBatch, branches: Sequence[str]
    ) -> dict[str, BranchScores]:
        model = model_of(policy)
        responses = [response for branch in branches for response in batch.responses[branch]]
        layout = self.layout(model, batch, responses)
        media, which = distinct_media(batch.contexts, responses)
        shared: list[Features] | None = None
        if media and takes_encoded(model) and _is_fixed(model):
            with torch.no_grad():
                shared = encode(model, media)

        def run(module: nn.Module, asked: Asked = None) -> Any:
            inner = model_of(module)
            own = shared if inner is model or self._sees_alike(model, inner) else None
            if _wraps(module):
                return module(layout, media, which, own, asked)
            return response_logps(inner, layout, media, which, own, asked)

        reference = as_reference(reference)
        wanted = [branch in self.token_kl for branch in branches for _ in range(batch.size)]
        if reference is None or not any(wanted):
            of_policy, of_reference = policy_and_reference(policy, reference, run)
            return scores_of(batch, branches, responses, layout, of_policy, of_reference)
        with torch.no_grad(), reference.using(policy) as module:
            of_reference, distributions = run(module, targets_of(layout, wanted))
        torch.clear_autocast_cache()  # casts made without gradients would cut the policy's
        together = run(policy, distributions)
        of_policy, kls = together[: len(of_reference)], together[len(of_reference) :]
        scored = scores_of(batch, branches, responses, layout, of_policy, of_reference)
        return with_kls(scored, branches, [b for b in branches if b in self.token_kl], batch.size, layout, kls)

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
