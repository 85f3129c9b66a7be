"""A vision-language model that answers, or goes on from the beginning of an answer, the same way each time."""

import contextlib
import hashlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.data.folder import file_digest
from mmalign.models.vlm_encode import Prompt, VLMEncoder
from mmalign.negatives.answers import without_pictures
from mmalign.negatives.m3id import M3ID
from mmalign.negatives.masking import hidden_from_attention
from mmalign.references.fingerprint import fingerprint_of
from mmalign.types import Message

LONGEST = 2**31
# A sentence ends at one of these marks where a space follows: "3.5" goes on.
SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？]")


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
        return self.say_each(messages, images, seed, (begun,), m3id=m3id, name=name)[0]

    @torch.no_grad()
    def say_each(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        seed: int,
        begun: Sequence[str],
        *,
        m3id: dict[str, Any] | None = None,
        sentence: bool = False,
        hide: float = 0.0,
        name: str = "row",
    ) -> list[str]:
        """What the model says after ``messages`` and each of ``begun``, all at once.

        ``sentence``: up to the end of the sentence (a full stop, or ! or ?), which is kept. ``hide``: share of the
        tokens of pictures that attention cannot reach, the same ones for each of ``begun``: token i stays where
        rho_i >= hide, rho_i ~ U(0, 1) of ``seed`` (equation 6 of arXiv 2407.02477).
        """
        told = self.encoder.prompt(messages, images, name)
        heads = [self._ids(text) for text in begun]
        rows = [torch.cat([told.input_ids, head]) for head in heads]
        ids, mask = (self._padded(rows, fill) for fill in (self._pad, None))
        given = self._media(told, rows)
        if m3id is not None:
            if any(begun):
                raise ValueError(f"{name}: M3ID decodes whole responses, and one begins with {begun[0]!r}")
            blind = self.encoder.prompt(without_pictures(messages), (), name).input_ids
            blind_ids = self._padded([blind] * len(rows), self._pad)
            given["logits_processor"] = [M3ID(self.model, blind_ids, ids.shape[1], **m3id)]
        if sentence:
            given["stopping_criteria"] = [_SentenceEnds(self, heads, ids.shape[1])]
        hiding = hidden_from_attention(self.model, self._hidden(told, rows, hide, seed)) if hide else None
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with hiding or contextlib.nullcontext(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            made = self.model.generate(input_ids=ids, attention_mask=mask, **given, **self.decoding.settings)
        said = [self.after(head, row[ids.shape[1] :]) for head, row in zip(heads, made.cpu(), strict=True)]
        return [first_sentence(text) for text in said] if sentence else said

    @torch.no_grad()
    def logits(self, told: Prompt, answer: Tensor) -> Tensor:
        """[tokens, vocabulary]: what the model expects at each place of ``answer`` behind the prompt ``told``."""
        row = torch.cat([told.input_ids, answer])
        ids = row[None].to(self.model.device)
        given = {"attention_mask": torch.ones_like(ids), "logits_to_keep": len(answer) + 1, **self._media(told, [row])}
        out = self.model(input_ids=ids, **given)
        return out.logits[0, :-1]

    def fingerprint(self) -> str:
        """SHA-256 over the weights as they are loaded, and the processor's files: what the model says depends on it."""
        digest = hashlib.sha256(fingerprint_of(self.model).encode())
        with TemporaryDirectory() as folder:
            self.encoder.processor.save_pretrained(folder)
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(folder)}\0{file_digest(file)}\n".encode())
        return digest.hexdigest()

    def after(self, head: Tensor, new: Tensor) -> str:
        """The text of tokens ``new`` as it stands behind ``head``: alone, SentencePiece drops its first space."""
        tokenizer = self.encoder.tokenizer
        before = tokenizer.decode(head, skip_special_tokens=True)
        whole = tokenizer.decode(torch.cat([head, new]), skip_special_tokens=True)
        return whole.removeprefix(before)

    def shown(self, told: Prompt) -> Tensor:
        """Which tokens of a prompt stand for pictures, [tokens] bool."""
        if told.mm_token_type_ids is not None:
            return told.mm_token_type_ids > 0
        config = self.model.config
        return told.input_ids == (getattr(config, "image_token_id", None) or config.image_token_index)

    @property
    def _pad(self) -> int:
        tokenizer = self.encoder.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _ids(self, text: str) -> Tensor:
        made = self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return torch.tensor(made, dtype=torch.long)

    def _padded(self, rows: Sequence[Tensor], fill: int | None) -> Tensor:
        """Right-aligned rows, filled up with ``fill``; None: their mask."""
        longest = max(map(len, rows))
        made = torch.full((len(rows), longest), fill or 0, dtype=torch.long)
        for place, row in enumerate(rows):
            made[place, longest - len(row) :] = 1 if fill is None else row
        return made.to(self.model.device)

    def _media(self, told: Prompt, rows: Sequence[Tensor]) -> dict[str, Any]:
        """What the model takes beside ids: the pictures once for each row."""
        device = self.model.device
        given: dict[str, Any] = {key: torch.cat([value] * len(rows)).to(device) for key, value in told.media.items()}
        if told.mm_token_type_ids is not None and self._takes("mm_token_type_ids"):
            types = told.mm_token_type_ids
            rest = [torch.cat([types, types.new_zeros(len(row) - len(types))]) for row in rows]
            given["mm_token_type_ids"] = self._padded(rest, 0)
        return given

    def _hidden(self, told: Prompt, rows: Sequence[Tensor], share: float, seed: int) -> Tensor:
        """[rows, tokens] bool of what attention cannot reach. A picture at the very beginning keeps its first token:
        the first token of a sequence has nothing but itself to attend to."""
        shown = self.shown(told)
        drawn = torch.rand(len(shown), generator=torch.Generator().manual_seed(seed))
        hidden = shown & (drawn < share)
        hidden[0] = False
        longer = [torch.cat([hidden, hidden.new_zeros(len(row) - len(hidden))]).long() for row in rows]
        return self._padded(longer, 0).bool()

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self.model.forward).parameters


class _SentenceEnds:
    """A stopping criterion of ``generate``: each row stops once a sentence of what it adds has ended."""

    def __init__(self, speaker: Speaker, heads: Sequence[Tensor], prompt_length: int) -> None:
        self.speaker, self.heads, self.prompt_length = speaker, heads, prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **_kwargs: Any) -> Tensor:  # noqa: ARG002 - generate gives them
        added = (row[self.prompt_length :].cpu() for row in input_ids)
        texts = (self.speaker.after(head, row) for head, row in zip(self.heads, added, strict=True))
        ended = [SENTENCE_END.search(text.lstrip()) is not None for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def first_sentence(text: str) -> str:
    """``text`` up to its first end of a sentence, which is kept; all of it where it has none."""
    lead = len(text) - len(text.lstrip())
    found = SENTENCE_END.search(text, lead)
    return text if found is None else text[: found.end()]


def sentences(text: str) -> list[str]:
    """``text`` cut into sentences, each with the white space before it: joined they are ``text``, but for its end."""
    text = text.rstrip()
    cuts = sorted({0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)})
    return [text[start:end] for start, end in pairwise(cuts)]
