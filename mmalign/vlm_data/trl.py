"""Preference rows as TRL and the hub's vision sets have them: ``prompt``, ``chosen``, ``rejected``, ``images``.

``image`` is one picture. ``prompt`` is a text or a list of messages; responses are texts or a message of the assistant.
Where there is none, it is what both responses begin with. Contents are texts or lists of parts (``{"type": "image"}``,
``{"type": "text", "text": ...}``). Pictures without a part stand before the first user's text, as in TRL. VL-RLHF's
plain rows (``image``, ``prompt``, ``chosen``, ``rejected``) are the same with texts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import ImagePart, Message, Part, VideoPart, VLMPair
from mmalign.vlm_data.drafts import Broken, Draft, labels_in, listed, rest_of, shortened, with_media_first
from mmalign.vlm_data.opening import Format, open_format
from mmalign.vlm_data.writing import picture_bytes, plain_row, write_rows

NEEDED = ("chosen", "rejected")
_USED = ("prompt", *NEEDED, "images", "image", "videos", "video")


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """One pair."""
    images, videos = listed(fields, "images", "image"), listed(fields, "videos", "video")
    reading = _Reading(images, videos)
    sides = {name: _messages(fields.get(name), name, "assistant") for name in NEEDED}
    if fields.get("prompt") is not None:
        prompt = _messages(fields["prompt"], "prompt", "user")
    else:
        prompt = _common(sides["chosen"], sides["rejected"])
        sides = {name: messages[len(prompt) :] for name, messages in sides.items()}
    messages = [reading.message(message, f"prompt[{number}]") for number, message in enumerate(prompt)]
    return [
        Draft(
            prompt=with_media_first(messages, len(reading.images), len(reading.videos)),
            chosen=_response(sides["chosen"], "chosen"),
            rejected=_response(sides["rejected"], "rejected"),
            images=reading.images,
            videos=reading.videos,
            extras=rest_of(fields, *_USED),
            **labels_in(fields),
        )
    ]


class _Reading:
    """Parts of messages; a picture named inside a part joins those of the row."""

    def __init__(self, images: list[Any], videos: list[Any]) -> None:
        self.images, self.videos = images, videos
        self.placed = {"image": 0, "video": 0}
        self.inline: set[str] = set()

    def message(self, message: Mapping[str, Any], name: str) -> Message:
        content = message["content"]
        if isinstance(content, str):
            return Message(message["role"], (content,))
        return Message(message["role"], tuple(self._part(part, f"{name}.content") for part in content))

    def _part(self, part: Any, name: str) -> Part:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if kind not in ("image", "video"):
            raise Broken(f"{name}={shortened(part)} must be of type text, image or video")
        inside = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
        media = self.images if kind == "image" else self.videos
        if inside is not None and (kind in self.inline or not media):
            self.inline.add(kind)
            media.append(inside)
        elif (inside is not None) == (kind not in self.inline and bool(media)):
            raise Broken(f"{name}: {kind}s are named in parts and beside them; use one of the two")
        number = self.placed[kind] if part.get("index") is None else part["index"]
        self.placed[kind] += 1
        return ImagePart(number) if kind == "image" else VideoPart(number)


def _messages(value: Any, name: str, role: str) -> list[dict[str, Any]]:
    """Messages of a column: a text is one of ``role``."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value:
        raise Broken(f"{name}={shortened(value)} must be a text, a message or a list of messages")
    for number, message in enumerate(value):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, str | list) or message.get("role") not in ("system", "user", "assistant"):
            raise Broken(
                f"{name}[{number}]={shortened(message)} must have a role (system, user, assistant) and content"
            )
    return value


def _common(chosen: Sequence[Any], rejected: Sequence[Any]) -> list[Any]:
    """Messages that both conversations begin with, the last of each left out."""
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if not same:
        raise Broken("has no prompt, and chosen and rejected begin with nothing in common")
    return list(chosen[:same])


def _response(messages: Sequence[Mapping[str, Any]], name: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise Broken(f"{name} has messages of {roles or 'nobody'} after the prompt; wanted is one of the assistant")
    content = messages[0]["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in parts):
        raise Broken(f"{name} holds a part that is no text; pictures inside a response have no place in a pair")
    return "".join(part["text"] for part in parts)


def open_trl(config: DataConfig) -> RowTable[VLMPair]:
    """Index parquet, JSON or JSONL; picture paths start from ``data.images`` or the file's folder."""
    return open_format(Format("trl", parse), config)


_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))
_PICTURES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _features(kind: pa.DataType) -> Any:
    """What the ``datasets`` library calls a column."""
    if kind == _PICTURES:
        return [{"_type": "Image"}]
    if pa.types.is_list(kind):
        return [_features(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _features(field.type) for field in kind}
    return {"dtype": "float64" if kind == pa.float64() else "string", "_type": "Value"}


def _schema() -> pa.Schema:
    columns = {"images": _PICTURES, **dict.fromkeys(("prompt", *NEEDED), _MESSAGES)}
    columns |= {"preference": pa.float64(), "margin": pa.float64(), "user_id": pa.string(), "id": pa.string()}
    features = {"info": {"features": {name: _features(kind) for name, kind in columns.items()}}}
    return pa.schema(columns, metadata={b"huggingface": json.dumps(features).encode()})


def write_trl(table: RowTable[VLMPair], path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """One parquet file that ``datasets`` loads with pictures decoded; and names of what rows had beside that.

    Raises ValueError for a row that the form cannot hold: ties, videos, other pictures for a side or branch.
    """
    left_out: set[str] = set()

    def columns(row: VLMPair) -> dict[str, Any]:
        kept = plain_row(row, "the trl form", videos=False)
        left_out.update(kept.left_out, row.extras)
        return {
            "images": [{"bytes": picture_bytes(image), "path": None} for image in kept.images],
            "prompt": [{"role": message.role, "content": _parts(message)} for message in row.prompt],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": row.chosen}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": row.rejected}]}],
            "preference": row.preference,
            "margin": row.margin,
            "user_id": row.user_id,
            "id": row.sample_id,
        }

    target = write_rows((columns(row) for row in table), path, _schema())
    return target, tuple(sorted(left_out))


def _parts(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
        for part in message.content
    ]
