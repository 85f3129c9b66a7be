"""LLaVA's JSON with two answers: ``conversations`` that end with the human's turn, ``chosen`` and ``rejected``.

Also LLaVA-RLHF's comparisons (arXiv 2309.14525): ``output_1``, ``output_2`` and ``preference`` 1 or 2. ``image`` is a
path or a list of them, ``video`` likewise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, turn_of, turns_in
from mmalign.vlm_data.drafts import Broken, Draft, labels_in, listed, rest_of
from mmalign.vlm_data.opening import Format, open_format
from mmalign.vlm_data.writing import Folder, judged, marked, plain_row, with_extras, write_json

_MEDIA = ("image", "images", "video", "videos")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    compared = "output_1" in fields
    if compared:
        given = fields.get("preference")
        if given not in (1, 2) or isinstance(given, bool):
            raise Broken(f"preference={given!r} must be 1 or 2, the better output")
        names = ("output_1", "output_2") if given == 1 else ("output_2", "output_1")
    else:
        names = ("chosen", "rejected")
    chosen, rejected = (_answer(fields.get(name), name) for name in names)
    turns = turns_in(fields, "conversations")
    extras = rest_of(fields, *names, *_MEDIA, "conversations")
    labels = {} if compared else labels_in(fields)
    images, videos = listed(fields, "image", "images"), listed(fields, "video", "videos")
    return [drafted(turns, chosen, rejected, images=images, videos=videos, extras=extras, **labels)]


def _answer(value: Any, name: str) -> str:
    return value if isinstance(value, str) else turn_of(value, name)[1]


def open_llava(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON or JSONL; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("llava", parse), config)


def write_llava(table: RowTable[VLMPair], folder: str | Path) -> tuple[Path, tuple[str, ...]]:
    """``rows.json`` in LLaVA's form and ``images/`` in a new ``folder``; and names of what rows had beside that.

    Pictures brought for ``chosen@retrieved`` go to no place here (``povid`` reads them). Raises ValueError for a row
    that the form cannot hold.
    """
    out, left_out = Folder(folder), set[str]()

    def record(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, "LLaVA's form")
        left_out.update(kept.left_out)
        speakers = {"user": "human", "assistant": "gpt", "system": "system"}
        turns = [
            {"from": speakers[message.role], "value": marked(message, row.sample_id, line_break=True)}
            for message in row.prompt
        ]
        found: dict[str, Any] = {"id": row.sample_id}
        if kept.images:
            names = out.save(kept.images)
            found["image"] = names[0] if len(names) == 1 else names
        if kept.videos:
            found["video"] = out.videos(kept.videos)
        found |= {"conversations": turns, "chosen": row.chosen, "rejected": row.rejected, **judged(row)}
        return with_extras(found, row)

    return write_json(table, out.path / "rows.json", record), tuple(sorted(left_out))
