"""CLIP's byte-pair tokens, from the vocabulary that open_clip brings along: no tokenizer file has to be found."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CONTEXT = 77
START, END = 49406, 49407


@dataclass(frozen=True)
class ClipTokens:
    """Prompts to token ids [batch, 77], cut after 75 tokens of text, between start and end of text.

    ``cleaning``: what happens before the lower-casing. ``clip``: mojibake and HTML entities are repaired (OpenAI's clip
    and open_clip). ``transformers``: only NFC and single blanks (its CLIP tokenizers). ``pad``: what follows the end of
    text; 0 in clip and open_clip, the end token in transformers.
    """

    cleaning: Literal["clip", "transformers"] = "clip"
    pad: int = 0

    @property
    def context(self) -> int:
        """Tokens that the model reads, start and end included."""
        return CONTEXT

    def __call__(self, prompts: Sequence[str]) -> Int[Tensor, "batch 77"]:
        """Token ids, int64."""
        ids = torch.full((len(prompts), CONTEXT), self.pad)
        for row, tokens in zip(ids, self._texts(prompts), strict=True):
            tokens = [START, *tokens[: CONTEXT - 2], END]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, before anything is cut off."""
        return [len(tokens) for tokens in self._texts(prompts)]

    def _texts(self, prompts: Sequence[str]) -> list[list[int]]:
        tokenizer = _tokenizer(self.cleaning)
        return [tokenizer.encode(prompt) for prompt in prompts]


@dataclass(frozen=True)
class FolderTokens:
    """Prompts to token ids [batch, ``context``] by the tokenizer of a folder, cut to fit, padded as it says."""

    folder: Path
    context: int

    def __call__(self, prompts: Sequence[str]) -> Int[Tensor, "batch context"]:
        """Token ids, int64."""
        return _saved_tokenizer(self.folder)(
            list(prompts), padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        ).input_ids

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, before anything is cut off."""
        read = _saved_tokenizer(self.folder)
        return [len(read(prompt, add_special_tokens=False).input_ids) for prompt in prompts]


@lru_cache
def _saved_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@lru_cache
def _tokenizer(cleaning: str) -> SimpleTokenizer:
    tokenizer: Any = SimpleTokenizer()
    if cleaning == "transformers":
        tokenizer.clean_fn = _as_transformers
    return tokenizer


def _as_transformers(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower().strip()
