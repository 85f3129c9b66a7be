"""Conversations and responses as tokens: what the processor of a vision-language model makes of a row.

The chat template of the processor decides how turns look; a response is what the template adds for it, up to and with
the end token. Nothing is cut from a prompt, because its tokens stand for pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from mmalign.types import Clip, ImagePart, Message, TokenWeights, VideoPart

_NOT_MEDIA = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "labels", "rows", "cols")

_TAIL = 32  # characters of the prompt that a response is tokenised after


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the response: text as the template has it, token ids, and what there is about pictures."""

    text: str
    messages: list[dict[str, Any]]
    input_ids: Tensor
    mm_token_type_ids: Tensor | None
    media: Mapping[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """A response as token ids, end token included unless it was cut; ``weights`` where the row has some."""

    input_ids: Tensor
    weights: Tensor | None = None


class VLMEncoder:
    """``processor`` as rows need it. ValueError where it has no chat template or no end token."""

    def __init__(self, processor: Any, *, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        if self.tokenizer is None:
            raise ValueError(
                f"{type(processor).__name__} has no tokenizer; is it the processor of a vision-language model?"
            )
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"{type(processor).__name__} has no chat template, so nobody can tell how a conversation looks to the "
                "model; save one with it (processor.chat_template = ...; processor.save_pretrained(FOLDER))"
            )
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} has no end token (eos_token), so responses would never end; set it "
                "and save the processor again"
            )

    def prompt(
        self, messages: Sequence[Message], images: Sequence[Image], name: str, videos: Sequence[Clip] = ()
    ) -> Prompt:
        """``messages`` with ``images`` and ``videos`` in their places; ValueError names the row.

        The frames of a video are all shown: which ones is decided before.
        """
        told = [self._told(message, name) for message in messages]
        text = self.processor.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        in_order = [
            images[part.index] for message in messages for part in message.content if isinstance(part, ImagePart)
        ]
        begin = self.tokenizer.bos_token
        # A template that begins with the begin token itself must not get a second one.
        special = not (begin and text.startswith(begin))
        given: dict[str, Any] = {"images": [in_order]} if in_order else {}
        clips = [videos[part.index] for message in messages for part in message.content if isinstance(part, VideoPart)]
        if clips:
            given |= self._shown(clips, name)
        made = self.processor(
            text=[text], **given, add_special_tokens=special, return_mm_token_type_ids=True, return_tensors="pt"
        )
        ids = made["input_ids"][0]
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            raise ValueError(f"{name}: the prompt begins with two begin tokens ({begin}); the chat template adds one")
        types = made.get("mm_token_type_ids")
        media = {key: torch.as_tensor(value) for key, value in made.items() if key not in _NOT_MEDIA} if given else {}
        return Prompt(text, told, ids, None if types is None else torch.as_tensor(types)[0], media)

    def answer(self, prompt: Prompt, response: str, name: str, weights: TokenWeights | None = None) -> Answer:
        """``response`` to ``prompt``, cut on the right to ``max_length`` together with it.

        ValueError where the prompt leaves no room, with its counts, and where the template does not go on from it.
        """
        text = self._continuation(prompt, response, name)
        start = text.find(response.strip())
        ids, offsets = self._tokens(prompt.text, text)
        end = self.tokenizer.eos_token_id
        if end in ids:  # templates put a line break behind it, which nobody has to learn
            last = len(ids) - ids[::-1].index(end)
            ids, offsets = ids[:last], offsets and offsets[:last]
        else:
            ids = [*ids, end]
            offsets = offsets and [*offsets, (len(text), len(text))]
        room = self.max_length - len(prompt.input_ids)
        if room < 1:
            pictures = int((prompt.mm_token_type_ids > 0).sum()) if prompt.mm_token_type_ids is not None else 0
            what = f", {pictures} of them for pictures" if pictures else ""
            raise ValueError(
                f"{name}: the prompt has {len(prompt.input_ids)} tokens{what}, which leaves no room for a response in "
                f"vlm.max_length={self.max_length}; tokens of pictures are never cut, so raise it or make them smaller"
            )
        kept = torch.tensor(ids[:room])
        if weights is None:
            return Answer(kept)
        if offsets is None:
            raise ValueError(
                f"{name}: token weights need a fast tokenizer, and {type(self.tokenizer).__name__} is none"
            )
        return Answer(kept, self._weights(weights, offsets, start, response, name)[:room])

    def _tokens(self, before: str, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Token ids of ``text`` as they are right after ``before``, and the characters of each (None: not known).

        Alone, SentencePiece would put a space before it that is not there. Where a token would reach over the
        boundary, which the prompt has already drawn, ``text`` is tokenised alone.
        """
        if not self.tokenizer.is_fast:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]), None
        tail = before[-_TAIL:]
        made = self.tokenizer(tail + text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = list(zip(made["input_ids"], made["offset_mapping"], strict=True))
        if any(start < len(tail) < end for _, (start, end) in pairs):
            made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(made["input_ids"]), list(made["offset_mapping"])
        own = [(token, (start - len(tail), end - len(tail))) for token, (start, end) in pairs if end > len(tail)]
        return [token for token, _ in own], [span for _, span in own]

    def _shown(self, clips: Sequence[Clip], name: str) -> dict[str, Any]:
        """Videos as keywords of the processor."""
        if getattr(self.processor, "video_processor", None) is None:
            raise ValueError(
                f"{name}: the row has a video, and {type(self.processor).__name__} takes none; leave such rows out, or "
                "take a model of videos (Qwen2.5-VL, LLaVA-OneVision, ...)"
            )
        told = [
            {"total_num_frames": len(clip.frames), "fps": clip.fps, "frames_indices": list(range(len(clip.frames)))}
            for clip in clips
        ]
        frames = [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips]
        # Every frame given is shown: choosing among them again would undo a corruption of their order.
        return {"videos": frames, "video_metadata": told, "do_sample_frames": False}

    def _told(self, message: Message, name: str) -> dict[str, Any]:
        content = []
        for part in message.content:
            if isinstance(part, ImagePart | VideoPart):
                content.append({"type": "image" if isinstance(part, ImagePart) else "video"})
                continue
            for mark in filter(None, (getattr(self.processor, mark, None) for mark in ("image_token", "video_token"))):
                if mark in part:
                    raise ValueError(f"{name}: a text holds {mark!r}, which stands for a picture; take it out")
            content.append({"type": "text", "text": part})
        return {"role": message.role, "content": content}

    def _continuation(self, prompt: Prompt, response: str, name: str) -> str:
        """What the template adds to the prompt for this response."""
        if not response.strip():
            raise ValueError(f"{name}: the response is empty")
        said = {"role": "assistant", "content": [{"type": "text", "text": response.strip()}]}
        whole = self.processor.apply_chat_template([*prompt.messages, said], tokenize=False)
        if not whole.startswith(prompt.text) or response.strip() not in whole[len(prompt.text) :]:
            raise ValueError(
                f"{name}: with the response, the chat template changes the prompt before it, so there is no place "
                f"where the response begins: {prompt.text[-40:]!r} becomes {whole[-60:]!r}"
            )
        return whole[len(prompt.text) :].rstrip()

    @staticmethod
    def _weights(
        weights: TokenWeights, offsets: Sequence[tuple[int, int]], start: int, response: str, name: str
    ) -> Tensor:
        """Spans are of the response as the row has it; the template puts its own space where that begins with one."""
        lead = len(response) - len(response.lstrip())
        size = len(response.strip())
        moved = [
            (min(max(first - start, 0), size) + lead, min(max(last - start, 0), size) + lead) for first, last in offsets
        ]
        try:
            return torch.tensor(weights.for_tokens(moved))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
