"""Where two responses differ, word by word, as token weights: the corrected segments of dense DPO (RLHF-V)."""

import re
from dataclasses import replace
from difflib import SequenceMatcher

from mmalign.types import TokenWeights, VLMPair

_WORDS = re.compile(r"\w+|[^\w\s]")


def changed_spans(chosen: str, rejected: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Stretches of characters of each text that the other does not have, between words that both have in order."""
    words = [[(match.start(), match.end(), match[0]) for match in _WORDS.finditer(text)] for text in (chosen, rejected)]
    matcher = SequenceMatcher(None, [word for *_, word in words[0]], [word for *_, word in words[1]], autojunk=False)
    spans: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for kind, first, last, other_first, other_last in matcher.get_opcodes():
        if kind == "equal":
            continue
        for side, (start, end) in enumerate(((first, last), (other_first, other_last))):
            if start < end:
                spans[side].append((words[side][start][0], words[side][end - 1][1]))
    return spans


def weigh_changes(row: VLMPair, weight: float, rest: float = 1.0) -> VLMPair:
    """``row`` with ``weight`` on what differs between its responses and ``rest`` on what they share.

    Dense DPO of RLHF-V (arXiv 2312.00849, equation 3) weighs corrected segments ``gamma`` = 5 times the others; VL-RLHF
    leaves shared tokens out (``rest=0``). Raises ValueError where both weights are 0 or one is negative.
    """
    if weight == 0 and rest == 0:
        raise ValueError("weight=0 with rest=0 leaves no token; give one of them a value above 0")
    sides = changed_spans(row.chosen, row.rejected)
    chosen, rejected = (TokenWeights(tuple((start, end, weight) for start, end in spans), rest) for spans in sides)
    return replace(row, chosen_weights=chosen, rejected_weights=rejected)
