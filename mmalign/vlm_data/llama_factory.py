"""LLaMA-Factory's sharegpt form: ``conversations``, ``chosen`` and ``rejected`` turns, ``images``, ``videos``.

Turns are ``{"from", "value"}``, or ``{"role", "content"}`` under ``messages`` for the same in OpenAI's words. Marks in
the texts say where pictures stand. Paths of audio stay in ``extras``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, turn_of, turns_in
from mmalign.vlm_data.drafts import Draft, labels_in, listed, rest_of
from mmalign.vlm_data.opening import Format, open_format
from mmalign.vlm_data.writing import Folder, judged, marked, plain_row, whole, with_extras, write_json

_USED = ("conversations", "messages", "chosen", "rejected", "system", "images", "image", "videos", "video")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    column, words = ("messages", ("role", "content")) if "messages" in fields else ("conversations", ("from", "value"))
    turns = turns_in(fields, column, *words)
    if fields.get("system"):
        turns = [("system", str(fields["system"])), *turns]
    chosen, rejected = (turn_of(fields.get(name), name, *words)[1] for name in ("chosen", "rejected"))
    return [
        drafted(
            turns,
            chosen,
            rejected,
            images=listed(fields, "images", "image"),
            videos=listed(fields, "videos", "video"),
            extras=rest_of(fields, *_USED),
            **labels_in(fields),
        )
    ]


def open_llama_factory(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSON, JSONL or parquet; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("llama_factory", parse), config)


def write_llama_factory(table: RowTable[VLMPair], folder: str | Path) -> tuple[Path, tuple[str, ...]]:
    """``rows.json``, ``images/`` and the ``dataset_info.json`` that names them, in a new ``folder``.

    Gives the file of rows and names of what rows had beside the form. Raises ValueError for a row it cannot hold.
    """
    out, left_out = Folder(folder), set[str]()

    def record(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, "LLaMA-Factory's form")
        left_out.update(kept.left_out)
        speakers = {"user": "human", "assistant": "gpt"}
        system = row.prompt[0].text if row.prompt[0].role == "system" else ""
        turns = [
            {"from": speakers[message.role], "value": marked(message, row.sample_id, line_break=False)}
            for message in row.prompt[bool(system) :]
        ]
        found: dict[str, Any] = {
            "conversations": turns,
            "chosen": {"from": "gpt", "value": row.chosen},
            "rejected": {"from": "gpt", "value": row.rejected},
            "images": out.save(kept.images),
            "videos": out.videos(kept.videos),
            "system": system,
            "id": row.sample_id,
        }
        return with_extras({**found, **judged(row)}, row)

    written = write_json(table, out.path / "rows.json", record)
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    columns |= {"videos": "videos", "system": "system"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "ranking": True, "columns": columns}}
    with whole(out.path / "dataset_info.json") as partial:
        partial.write_text(json.dumps(info, indent=1))
    return written, tuple(sorted(left_out))
