"""VLM rows that exist already - made by a program, not read from a file - as a table like any other."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.data.memory import MemoryRows, memory_table
from mmalign.data.table import RowTable, hashed
from mmalign.types import VLMPair
from mmalign.vlm_data.canonical import columns_of


def table_of(rows: Sequence[VLMPair], *, source: str = "memory") -> RowTable[VLMPair]:
    """``rows`` as a table: to train on, split, or write.

    ``source``: where they come from, for the report. ValueError for no rows, or sample ids that repeat. The fingerprint
    covers everything a row says and the bytes of its pictures.
    """
    for row in rows:
        if not isinstance(row, VLMPair):
            raise ValueError(f"{source}: {type(row).__name__} is no VLMPair; mmalign.data.table_of takes other rows")
    return memory_table(MemoryRows(tuple(rows)), source, "vlm_pair", mark=_mark)


def _mark(row: VLMPair) -> str:
    columns = columns_of(row, Path())
    columns.pop("images")
    return hashed(sorted(columns.items()))
