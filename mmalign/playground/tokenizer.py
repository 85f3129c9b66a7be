"""A CLIP tokenizer whose whole vocabulary is the caption grammar: every word of it is one token.

It is an ordinary ``transformers.CLIPTokenizer``: ``save_pretrained`` writes a folder that ``from_pretrained`` loads.
Whole words come from byte-pair merges learnt on the grammar's words until no word is in pieces, because merges are what
a saved CLIP tokenizer keeps. Words outside of the grammar fall into letters, other signs into the unknown token.
"""

import string
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from mmalign.playground.captions import words

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_LENGTH = 32
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<|unknown|>", "<|padding|>")
# The end is not 2: with eos_token_id 2 a text encoder of transformers pools at the largest id instead of at the end.
BOS_ID, EOS_ID, UNK_ID, PAD_ID = range(4)

_WORD_END = "</w>"


def build_tokenizer() -> "CLIPTokenizer":
    """A new tokenizer, at most MAX_LENGTH tokens long; BOS_ID, EOS_ID, UNK_ID, PAD_ID are its special tokens."""
    from transformers import CLIPTokenizer

    merges = _learn_merges(words())
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", _WORD_END)]
    vocabulary = [*SPECIAL_TOKENS, *letters, *(left + right for left, right in merges)]
    bos, eos, unknown, padding = SPECIAL_TOKENS
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,  # pyright: ignore[reportArgumentType]  # pairs are what the backend takes
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=padding,
        model_max_length=MAX_LENGTH,
    )


def _learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first (then the first in the alphabet), until each word is one piece."""
    pieces = [[*word[:-1], word[-1] + _WORD_END] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
