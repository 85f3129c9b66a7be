"""Writers of the forms that published data sets have: RLHF-V, RLAIF-V, POVID, mDPO, MM-RLHF, MIA-DPO.

All but POVID hold one question and its answers: rows with more turns are refused. VLFeedback has no writer: its records
hold the ratings of several answers, which a pair does not know.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmalign.data.table import RowTable
from mmalign.types import ImagePart, Message, VideoPart, VLMPair
from mmalign.vlm_data.conversations import from_vicuna
from mmalign.vlm_data.drafts import IMAGE_MARK
from mmalign.vlm_data.mia_dpo import MARK
from mmalign.vlm_data.writing import (
    Folder,
    Plain,
    in_order,
    judged,
    marked,
    picture_bytes,
    plain_row,
    with_extras,
    write_json,
    write_rows,
)

Written = tuple[Path, tuple[str, ...]]
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_LABELS = {"preference": pa.float64(), "margin": pa.float64(), "user_id": pa.string(), "id": pa.string()}


def write_rlaif_v(table: RowTable[VLMPair], path: str | Path) -> Written:
    """One parquet file: ``image``, ``question``, ``chosen``, ``rejected``; extras have no place there."""

    def texts(row: VLMPair, question: str) -> dict[str, str]:
        return {"question": question, "chosen": row.chosen, "rejected": row.rejected}

    return _parquet(table, path, "RLAIF-V's form", ("question", "chosen", "rejected"), texts)


def write_rlhf_v(table: RowTable[VLMPair], path: str | Path) -> Written:
    """One parquet file: ``image`` and ``text``, JSON of question, chosen and rejected; extras have no place there."""

    def texts(row: VLMPair, question: str) -> dict[str, str]:
        said = {"question": question, "chosen": row.chosen, "rejected": row.rejected}
        return {"text": json.dumps(said, ensure_ascii=False)}

    return _parquet(table, path, "RLHF-V's form", ("text",), texts)


def write_povid(table: RowTable[VLMPair], folder: str | Path) -> Written:
    """``rows.json`` of POVID and Re-Align with ``images/`` in a new ``folder``; retrieved pictures go with them."""
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}

    def record(row: VLMPair, kept: Plain, out: Folder) -> dict[str, Any]:
        turns = [
            {"from": speakers[message.role], "value": marked(message, row.sample_id, line_break=True)}
            for message in row.prompt
        ]
        found: dict[str, Any] = {"id": row.sample_id, "image": out.save(kept.images)}
        for name, answer in (("conversations", row.chosen), ("rejected_conversations", row.rejected)):
            found[name] = [*turns, {"from": "gpt", "value": answer}]
        if kept.videos:
            found["video"] = out.videos(kept.videos)
        if row.branch_images.get("retrieved"):
            found["retrieved_image"] = out.save(row.branch_images["retrieved"])
        return found

    return _json(table, folder, "POVID's form", record, holds=("pictures of @retrieved",))


def write_mdpo(table: RowTable[VLMPair], folder: str | Path) -> Written:
    """``rows.json`` of mDPO, prompts in Vicuna's template. ValueError for a text that the template would cut."""

    def record(row: VLMPair, kept: Plain, out: Folder) -> dict[str, Any]:
        turns = [(message.role, marked(message, row.sample_id, line_break=True)) for message in row.prompt]
        said = [text if who == "system" else f"{who.upper()}: {text}" for who, text in turns]
        prompt = " ".join([*said, "ASSISTANT:"])
        if from_vicuna(prompt) != turns:
            raise ValueError(f"{row.sample_id}: a text that mDPO's form would read as other turns: {prompt[:60]!r}")
        found = {"img_path": out.save(kept.images), "prompt": prompt, "chosen": row.chosen, "rejected": row.rejected}
        return {"id": row.sample_id, **found}

    return _json(table, folder, "mDPO's form", record, videos=False)


def write_mm_rlhf(table: RowTable[VLMPair], folder: str | Path) -> Written:
    """``rows.json`` of MM-RLHF: ``image`` or ``video``, ``prompt``, ``chosen``, ``rejected``."""

    def record(row: VLMPair, kept: Plain, out: Folder) -> dict[str, Any]:
        found: dict[str, Any] = {"id": row.sample_id, "prompt": _question(row, "MM-RLHF's form")}
        if kept.images:
            names = out.save(kept.images)
            found["image"] = names[0] if len(names) == 1 else names
        if kept.videos:
            found["video"] = out.videos(kept.videos)
        return {**found, "chosen": row.chosen, "rejected": row.rejected}

    return _json(table, folder, "MM-RLHF's form", record)


def write_mia_dpo(table: RowTable[VLMPair], folder: str | Path) -> Written:
    """``rows.json`` of MIA-DPO: pictures where ``<image-placeholder>`` stands in ``prompt``."""

    def record(row: VLMPair, kept: Plain, out: Folder) -> dict[str, Any]:
        text = marked(_one_turn(row, "MIA-DPO's form"), row.sample_id, line_break=True)
        found = {"prompt": text.replace(IMAGE_MARK, MARK), "chosen": row.chosen, "rejected": row.rejected}
        return {"id": row.sample_id, "image": out.save(kept.images), **found}

    return _json(table, folder, "MIA-DPO's form", record, videos=False)


def _json(
    table: RowTable[VLMPair],
    folder: str | Path,
    form: str,
    record: Callable[[VLMPair, Plain, Folder], Mapping[str, Any]],
    *,
    videos: bool = True,
    holds: tuple[str, ...] = (),
) -> Written:
    """``holds``: what of ``Plain.left_out`` the form has a place for after all."""
    out, left_out = Folder(folder), set[str]()

    def whole(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, form, videos=videos)
        left_out.update(kept.left_out - set(holds))
        return with_extras({**record(row, kept, out), **judged(row)}, row)

    return write_json(table, out.path / "rows.json", whole), tuple(sorted(left_out))


def _parquet(
    table: RowTable[VLMPair],
    path: str | Path,
    form: str,
    columns: tuple[str, ...],
    texts: Callable[[VLMPair, str], Mapping[str, str]],
) -> Written:
    left_out: set[str] = set()

    def cells(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, form, videos=False)
        left_out.update(kept.left_out, row.extras)
        if len(kept.images) != 1:
            raise ValueError(f"{row.sample_id}: has {len(kept.images)} pictures; {form} holds one, nothing was written")
        labels = {"preference": row.preference, "margin": row.margin, "user_id": row.user_id, "id": row.sample_id}
        image = {"bytes": picture_bytes(in_order(row, row.images)[0]), "path": None}
        return {"image": image, **texts(row, _question(row, form)), **labels}

    schema = pa.schema({"image": _PICTURE, **dict.fromkeys(columns, pa.string()), **_LABELS})
    return write_rows((cells(row) for row in table), path, schema), tuple(sorted(left_out))


def _one_turn(row: VLMPair, form: str) -> Message:
    if len(row.prompt) != 1:
        raise ValueError(
            f"{row.sample_id}: has {len(row.prompt)} turns; {form} holds one question, nothing was written"
        )
    return row.prompt[0]


def _question(row: VLMPair, form: str) -> str:
    """The text of a row's one turn; a mark only where pictures do not simply come first, which readers assume."""
    message = _one_turn(row, form)
    media = [part for part in message.content if not isinstance(part, str)]
    kinds = [isinstance(part, VideoPart) for part in media]
    places = [part.index for part in media if isinstance(part, ImagePart)]
    if message.content == (*media, message.text) and kinds == sorted(kinds) and places == sorted(places):
        return message.text
    return marked(message, row.sample_id, line_break=True)
