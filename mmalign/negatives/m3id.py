"""M3ID: decoding that leans on the picture the more, the longer the response is (arXiv 2403.14003)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

DECAY, GATE = 0.02, 0.3  # lambda and alpha of the paper


class M3ID:
    """l* = lc + 1[max lc < log gate] ((1 - g) / g) (lc - lu), g = exp(-decay (t + offset)), for ``model.generate``.

    Equation 4 and algorithm 1 of the paper. lc, lu: log-probabilities with and without the picture; t: tokens of the
    response so far, so with ``offset`` 0 the first is drawn as it was. ``decay``: lambda, 0.02 in the paper. ``gate``:
    alpha, 0.3 there; where the likeliest token with the picture has at least this probability the step stays as it was
    (null: every step is changed). ``offset``: t0, 0 for descriptions and 10, about the length of the question, for POPE
    in the paper. ``plausibility``: tokens with less than this share of the likeliest one's probability are left out;
    not in the paper, which has none (null); a published port takes VCD's 0.1.

    ``blind_ids`` [batch, tokens]: the same conversation without pictures, right-aligned, with its ``blind_mask``.
    ``prompt_length``: tokens of the conversation with pictures. Greedy and sampled decoding; with beams the blind
    branch is computed anew for each step.
    """

    def __init__(
        self,
        model: Any,
        blind_ids: Int[Tensor, "batch tokens"],
        prompt_length: int,
        *,
        blind_mask: Int[Tensor, "batch tokens"] | None = None,
        decay: float = DECAY,
        gate: float | None = GATE,
        offset: int = 0,
        plausibility: float | None = None,
    ) -> None:
        check_m3id(decay=decay, gate=gate, offset=offset, plausibility=plausibility)
        self.model, self.blind_ids, self.prompt_length = model, blind_ids, prompt_length
        self.blind_mask = torch.ones_like(blind_ids) if blind_mask is None else blind_mask
        self.decay, self.gate, self.offset, self.plausibility = decay, gate, offset, plausibility
        self._seen: Tensor | None = None
        self._past: Any = None
        self._deltas: Any = None

    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Log-probabilities to draw the next token from."""
        said = input_ids[:, self.prompt_length :]
        with_picture = scores.float().log_softmax(dim=-1)
        without = self._blind(said).float().log_softmax(dim=-1)
        changed = guided(with_picture, without, said.shape[1] + self.offset, self.decay)
        if self.plausibility is not None:
            least = with_picture.amax(dim=-1, keepdim=True) + math.log(self.plausibility)
            changed = changed.masked_fill(with_picture < least, -math.inf)
        if self.gate is not None:
            certain = with_picture.amax(dim=-1, keepdim=True) >= math.log(self.gate)
            changed = torch.where(certain, with_picture, changed)
        return changed

    @torch.no_grad()
    def _blind(self, said: Tensor) -> Tensor:
        """Logits of the next token without the picture; what was computed for the tokens before is kept."""
        goes_on = self._seen is not None and said.shape[1] > 0 and torch.equal(said[:, :-1], self._seen)
        ids = said[:, -1:] if goes_on else torch.cat([self.blind_ids, said], dim=1)
        mask = torch.cat([self.blind_mask, torch.ones_like(said)], dim=1)
        past = {"past_key_values": self._past} if goes_on else {}
        # Qwen's models keep where positions are in themselves, and generation of the other branch goes on from there.
        inner = getattr(self.model, "model", self.model)
        own = getattr(inner, "rope_deltas", None)
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = self._deltas if goes_on else None
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **past)
        if hasattr(inner, "rope_deltas"):
            self._deltas, inner.rope_deltas = inner.rope_deltas, own
        self._seen, self._past = said.clone(), out.past_key_values
        return out.logits[:, -1]


def check_m3id(*, decay: float, gate: float | None, offset: int, plausibility: float | None) -> None:
    """ValueError for settings of :class:`M3ID` outside their ranges."""
    if not (math.isfinite(decay) and decay > 0):
        raise ValueError(f"decay={decay!r} must be a number above 0; at 0 nothing would change")
    for name, value in (("gate", gate), ("plausibility", plausibility)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must lie between 0 and 1, or be null")
    if offset < 0:
        raise ValueError(f"offset={offset!r} must not be negative")


def guided(
    with_picture: Float[Tensor, "batch vocabulary"],
    without: Float[Tensor, "batch vocabulary"],
    step: int,
    decay: float,
) -> Float[Tensor, "batch vocabulary"]:
    """lc + ((1 - g) / g) (lc - lu) with g = exp(-decay * step), so (1 - g) / g = exp(decay * step) - 1."""
    return with_picture + math.expm1(decay * step) * (with_picture - without)


def m3id_decoding(**m3id: Any) -> Callable[[Any, Any, Sequence[str], int], list[Any]]:
    """``decoding`` of ``mmalign.evaluation.vlm_answers.greedy_answers``: M3ID for batches of questions about pictures.

    ``m3id``: keywords of :class:`M3ID`.
    """

    def decoding(model: Any, processor: Any, questions: Sequence[str], prompt_length: int) -> list[Any]:
        told = [[{"role": "user", "content": [{"type": "text", "text": question}]}] for question in questions]
        texts = [processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in told]
        begin = processor.tokenizer.bos_token
        blind = processor.tokenizer(
            texts,
            padding=True,
            padding_side="left",
            add_special_tokens=not (begin and texts[0].startswith(begin)),
            return_tensors="pt",
        ).to(model.device)
        return [M3ID(model, blind["input_ids"], prompt_length, blind_mask=blind["attention_mask"], **m3id)]

    return decoding
