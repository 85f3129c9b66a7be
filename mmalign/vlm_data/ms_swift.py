"""ms-swift's JSONL: ``messages`` that end with the chosen answer, ``rejected_response`` or ``rejected_messages``.

``images`` (paths, data URLs or structs) are those of both sides, ``rejected_images`` those of the rejected side, and
likewise ``videos`` and ``rejected_videos``. A list of rejected responses is as many pairs. Paths of audio stay in
``extras``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data.conversations import drafted, last_answers, turns_in
from mmalign.vlm_data.drafts import Broken, Draft, labels_in, listed, rest_of, shortened
from mmalign.vlm_data.opening import Format, open_format
from mmalign.vlm_data.writing import Folder, in_order, judged, marked, plain_row, with_extras, write_json

TELLING = ("rejected_response", "rejected_messages", "rejected_images")
_MEDIA = ("images", "image", "videos", "video", "rejected_images", "rejected_videos")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """A pair for every rejected response."""
    turns = turns_in(fields, "messages", "role", "content")
    others = {
        "images": listed(fields, "images", "image"),
        "videos": listed(fields, "videos", "video"),
        "rejected_images": listed(fields, "rejected_images") or None,
        "rejected_videos": listed(fields, "rejected_videos") or None,
        "extras": rest_of(fields, *_MEDIA, "messages", "rejected_response", "rejected_messages"),
        **labels_in(fields),
    }
    drafts = []
    for rejected in _rejected(fields, turns):
        before, chosen, answer = last_answers(turns, rejected)
        drafts.append(drafted(before, chosen, answer, **others))
    return drafts


def _rejected(fields: Mapping[str, Any], turns: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The rejected conversations."""
    if fields.get("rejected_messages") is not None:
        return [turns_in(fields, "rejected_messages", "role", "content")]
    given = fields.get("rejected_response")
    if given is None and fields.get("rejected_images"):
        given = turns[-1][1]  # the same answer, to other pictures
    answers = given if isinstance(given, list) else [given]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise Broken(f"rejected_response={shortened(given)} must be a text that is not empty, or a list of them")
    return [[*turns[:-1], ("assistant", str(answer))] for answer in answers]


def open_ms_swift(config: DataConfig) -> RowTable[VLMPair]:
    """Index JSONL, JSON or parquet; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("ms_swift", parse), config)


def write_ms_swift(table: RowTable[VLMPair], folder: str | Path) -> tuple[Path, tuple[str, ...]]:
    """``rows.jsonl`` and ``images/`` in a new ``folder``; and names of what rows had beside the form.

    Raises ValueError for a row that the form cannot hold; other pictures for the rejected side it can.
    """
    out, left_out = Folder(folder), set[str]()

    def record(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, "ms-swift's form", rejected_images=True)
        left_out.update(kept.left_out)
        turns = [
            {"role": message.role, "content": marked(message, row.sample_id, line_break=False)}
            for message in row.prompt
        ]
        found: dict[str, Any] = {
            "messages": [*turns, {"role": "assistant", "content": row.chosen}],
            "rejected_response": row.rejected,
            "images": out.save(kept.images),
            "id": row.sample_id,
        }
        if row.rejected_images is not None:
            found["rejected_images"] = out.save(in_order(row, row.rejected_images))
        if kept.videos:
            found["videos"] = out.videos(kept.videos)
        return with_extras({**found, **judged(row)}, row)

    return write_json(table, out.path / "rows.jsonl", record), tuple(sorted(left_out))
