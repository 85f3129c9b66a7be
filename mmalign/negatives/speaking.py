"""A vision-language model that answers, or goes on from the beginning of an answer, the same way each time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from mmalign.data.decoding import decode
from mmalign.models.vlm_encode import VLMEncoder
from mmalign.negatives.answers import Answered, without_pictures
from mmalign.negatives.m3id import M3ID
from mmalign.types import Message, VLMPair

LONGEST = 2**31


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: at ``temperature`` 0 the likeliest, else from the ``top_p`` of the distribution."""

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of ``generate``."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        draw = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, **draw}


class Speaker:
    """``model`` and ``processor`` of transformers (as ``mmalign.models.vlm.load_vlm`` gives them), in eval mode."""

    def __init__(self, model: Any, processor: Any, decoding: Decoding | None = None) -> None:
        self.model, self.decoding = model.eval(), decoding or Decoding()
        self.encoder = VLMEncoder(processor, max_length=LONGEST)

    @torch.no_grad()
    def say(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        seed: int,
        *,
        begun: str = "",
        m3id: dict[str, Any] | None = None,
        name: str = "row",
    ) -> str:
        """What the model says after ``messages`` and the text ``begun``, without that text.

        ``m3id``: keywords of :class:`M3ID`, to decode with it. What is drawn depends on ``seed`` and the row alone.
        """
        told = self.encoder.prompt(messages, images, name)
        ids = self._with(told.input_ids, begun)
        given: dict[str, Any] = {key: value.to(self.model.device) for key, value in told.media.items()}
        if told.mm_token_type_ids is not None and self._takes("mm_token_type_ids"):
            rest = torch.zeros(ids.shape[1] - len(told.input_ids), dtype=told.mm_token_type_ids.dtype)
            given["mm_token_type_ids"] = torch.cat([told.mm_token_type_ids, rest])[None].to(self.model.device)
        if m3id is not None:
            blind = self.encoder.prompt(without_pictures(messages), (), name)
            given["logits_processor"] = [M3ID(self.model, self._with(blind.input_ids, begun), ids.shape[1], **m3id)]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            made = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **given, **self.decoding.settings
            )
        return self.encoder.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    def _with(self, ids: torch.Tensor, begun: str) -> torch.Tensor:
        more = self.encoder.tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
        return torch.cat([ids, torch.tensor(more, dtype=ids.dtype)])[None].to(self.model.device)

    def _takes(self, name: str) -> bool:
        import inspect

        return name in inspect.signature(self.model.forward).parameters


def dropout_ntp(row: Answered, speaker: Speaker, seed: int, *, keep: float = 0.5) -> VLMPair | str:
    """The first ``keep`` of the response's words, and what the model adds when it does not see the picture.

    Dropout next-token prediction of InternVL's MPO (arXiv 2411.10442), which keeps half. Gives the pair with the whole
    response chosen, or why there is none: a response of one word, or a continuation that says nothing or the same.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep!r} must lie between 0 and 1")
    if not row.images:
        return "the row has no picture, so nothing would be hidden from the model"
    words = row.response.split(" ")
    kept = " ".join(words[: max(1, round(keep * len(words)))])
    if len(words) < 2:
        return "the response is one word and has no half"
    added = speaker.say(without_pictures(row.prompt), (), seed, begun=kept, name=row.sample_id).rstrip()
    if not added.strip():
        return "the model added nothing without the picture"
    if (kept + added).split() == row.response.split():
        return "the model said the same without the picture"
    pair = row.against(kept + added)
    return replace(pair, extras={**pair.extras, "negative": "dropout_ntp", "kept_characters": len(kept)})


def m3id_pair(row: Answered, speaker: Speaker, seed: int, **m3id: Any) -> VLMPair | str:
    """What the model says under M3ID, chosen, against what it says by itself (M3ID-DPO, arXiv 2403.14003).

    Both are the model's own, so the row's response is not used and stays in ``extras``. Gives why there is no pair
    where both are the same or one is empty.
    """
    if not row.images:
        return "the row has no picture, so M3ID has nothing to lean on"
    pictures = [decode(image) for image in row.images]
    chosen, rejected = (
        speaker.say(row.prompt, pictures, seed, m3id=keywords, name=row.sample_id).strip() for keywords in (m3id, None)
    )
    if not chosen or not rejected:
        return "the model said nothing"
    if chosen == rejected:
        return "the model said the same with M3ID and without"
    how = {"negative": "m3id", "response": row.response, **{f"m3id_{name}": value for name, value in m3id.items()}}
    return replace(row.against(rejected), chosen=chosen, extras={**row.extras, **how})
