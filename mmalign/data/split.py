"""Holding out prompts, never rows: a prompt seen in training says nothing about new ones."""

import numpy as np

from mmalign.data.table import GroupedStorage, R, RowTable, count, hashed


def split_by_prompt(table: RowTable[R], share: float, seed: int = 0) -> tuple[RowTable[R], RowTable[R]]:
    """(train, held out), where round(share * distinct prompts) prompts and all their rows are held out.

    Prompts are ordered by a hash of ``seed`` and prompt, so the choice does not depend on the order of rows, the
    machine or the process. Prompts that differ only in case or spacing count as one: CLIP tokenisers read them alike.
    Rows of vision-language models are held out by their first picture in place of the prompt, because many pictures
    share a question; rows without one by their prompt. Raises ValueError where a side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.held_out={share:g}; a split needs a share between 0 and 1, ends excluded")
    keys = table.prompts
    if isinstance(table.storage, GroupedStorage):
        groups = table.storage.groups
        keys = [groups[position] for position in table.positions]
    hashes = np.fromiter((_hash(seed, key) for key in keys), dtype=np.uint64, count=len(table))
    distinct = np.unique(hashes)
    number = round(share * len(distinct))
    if number in (0, len(distinct)):
        side = "held-out" if number == 0 else "training"
        raise ValueError(
            f"data.held_out={share:g} of {count(len(distinct), 'distinct prompt')} leaves the {side} side empty; "
            + ("at least two distinct prompts are needed" if len(distinct) < 2 else "choose a share nearer one half")
        )
    held_out = hashes < distinct[number]
    return table.select(np.flatnonzero(~held_out)), table.select(np.flatnonzero(held_out))


def _hash(seed: int, prompt: str) -> int:
    """64 bits: of a million prompts, two share them with probability 1e-7, and would then only go together."""
    return int(hashed(seed, " ".join(prompt.lower().split()))[:16], 16)
