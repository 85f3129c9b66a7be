"""mmalign's own parquet for VLM rows, which every source can be written as.

Columns: ``sample_id``; ``prompt`` (JSON: messages as [role, [part, ...]], a part a text, {"image": n} or {"video": n});
``chosen``, ``rejected``; ``preference`` in [0.5, 1]; ``margin``, ``user_id``, ``extras`` (JSON) or null;
``chosen_weights``, ``rejected_weights`` (JSON or null); ``images`` (list of encoded pictures, each once) and
``image_sha256``; ``layout`` (JSON: which of them are ``images``, ``chosen_images``, ``rejected_images``, of which
branch, and videos as paths or frames). The footer's key ``mmalign`` holds JSON with ``format`` and ``version``.
Video files are named, not copied: relative to the parquet file where they lie below its folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import mmalign
from mmalign.data.extras import dumps_extras, loads_extras
from mmalign.data.hub import locate
from mmalign.data.shards import Shard
from mmalign.data.table import RowTable
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes, ImagePart, Message, Part, TokenWeights, Video, VideoPart, VLMPair
from mmalign.vlm_data.drafts import Broken, Draft, shortened
from mmalign.vlm_data.opening import Format, open_format
from mmalign.vlm_data.writing import write_rows

KEY, FORMAT, VERSION = b"mmalign", "mmalign.vlm", 1
_TEXT = ("sample_id", "prompt", "chosen", "rejected", "layout")
_MAY_BE_NULL = ("user_id", "extras", "chosen_weights", "rejected_weights")
COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys((*_TEXT, *_MAY_BE_NULL), pa.string()),
    "preference": pa.float64(),
    "margin": pa.float64(),
    "image_sha256": pa.list_(pa.string()),
    "images": pa.list_(pa.binary()),
}


def is_canonical(schema: pa.Schema, where: object) -> bool:
    """Whether a file with ``schema`` is one of these. ValueError for a version that this mmalign does not read."""
    text = (schema.metadata or {}).get(KEY)
    header = json.loads(text) if text else {}
    if header.get("format") != FORMAT:
        return False
    if header.get("version") != VERSION:
        raise ValueError(f"{where} has version {header.get('version')} of {FORMAT}, and this mmalign reads {VERSION}")
    return True


def open_vlm_canonical(config: DataConfig) -> RowTable[VLMPair]:
    """Index canonical VLM files: ``config.path`` is one file, a folder, a glob or a hub id."""
    for location in locate(config):
        shard = Shard.at(location)
        if not is_canonical(shard.schema, shard.path):
            raise ValueError(
                f"{shard.path} is no canonical VLM file: its footer has no {FORMAT} entry; try source=auto"
            )
    return open_format(Format("vlm_canonical", parse, heavy=("images",)), config)


def parse(fields: Mapping[str, Any]) -> list[Draft]:
    """The row. Without ``images`` (while files are indexed) its pictures are empty references."""
    lacking = [name for name in (*_TEXT, "preference") if fields.get(name) is None]
    if lacking:
        raise Broken(f"{lacking[0]} is null")
    if not 0.5 <= fields["preference"] <= 1:
        raise Broken(f"preference={fields['preference']!r} must lie between 0.5 and 1")
    layout = _json(fields, "layout")
    pictures = fields.get("images") or [{"bytes": None}] * len(fields.get("image_sha256") or [])

    def at(places: Sequence[int] | None) -> list[Any] | None:
        if places is not None and not all(0 <= place < len(pictures) for place in places):
            raise Broken(f"layout={shortened(fields['layout'])} names picture {max(places)} of {len(pictures)}")
        return None if places is None else [pictures[place] for place in places]

    def video(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"path": entry.get("path"), "frames": at(entry.get("frames")), "fps": entry.get("fps")}

    videos = {name: [video(entry) for entry in layout[name]] for name in _VIDEOS if layout.get(name) is not None}
    return [
        Draft(
            prompt=[_message(entry, fields) for entry in _json(fields, "prompt")],
            chosen=fields["chosen"],
            rejected=fields["rejected"],
            images=at(layout.get("images")) or (),
            videos=videos.get("videos", ()),
            branch_images={name: at(places) or () for name, places in layout.get("branches", {}).items()},
            preference=fields["preference"],
            margin=fields.get("margin"),
            user_id=fields.get("user_id"),
            extras=loads_extras(fields.get("extras")),
            sample_id=fields["sample_id"],
            chosen_images=at(layout.get("chosen_images")),
            rejected_images=at(layout.get("rejected_images")),
            chosen_videos=videos.get("chosen_videos"),
            rejected_videos=videos.get("rejected_videos"),
            chosen_weights=_weights(fields, "chosen_weights"),
            rejected_weights=_weights(fields, "rejected_weights"),
        )
    ]


_IMAGES = ("images", "chosen_images", "rejected_images")
_VIDEOS = ("videos", "chosen_videos", "rejected_videos")


def _json(fields: Mapping[str, Any], name: str) -> Any:
    try:
        return json.loads(fields[name])
    except json.JSONDecodeError as error:
        raise Broken(f"{name}={shortened(fields[name])} must be JSON ({error})") from error


def _message(entry: Any, fields: Mapping[str, Any]) -> Message:
    try:
        role, parts = entry
        return Message(role, tuple(_part(part) for part in parts))
    except (TypeError, ValueError, KeyError) as error:
        raise Broken(f"prompt={shortened(fields['prompt'])} must hold [role, [part, ...]] entries ({error})") from error


def _part(part: Any) -> Part:
    if isinstance(part, str):
        return part
    return ImagePart(part["image"]) if "image" in part else VideoPart(part["video"])


def _weights(fields: Mapping[str, Any], name: str) -> TokenWeights | None:
    if fields.get(name) is None:
        return None
    said = _json(fields, name)
    spans = tuple((int(start), int(end), float(weight)) for start, end, weight in said["spans"])
    tokens = said["tokens"]
    return TokenWeights(spans, said["rest"], None if tokens is None else tuple(tokens))


def write_vlm_canonical(
    table: RowTable[VLMPair], path: str | Path, *, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write ``table`` to one ``.parquet`` file, everything kept and pictures byte for byte.

    The file appears whole or not at all. ``provenance`` is kept in the footer beside the source's name, files and
    report. Raises ValueError for an empty table, a picture that cannot be read, or extras that JSON cannot hold.
    """
    target = Path(path).expanduser()
    if not len(table):
        raise ValueError(f"path={path}: the table has no rows; nothing was written")
    said = {"source": table.report.source, "files": list(table.report.files[:100]), "report": str(table.report)}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": {**said, "fingerprint": table.fingerprint, "mmalign": mmalign.__version__, **(provenance or {})},
    }
    schema = pa.schema(COLUMNS, metadata={KEY: json.dumps(header, ensure_ascii=False).encode()})
    light = [name for name in schema.names if name not in ("images", "image_sha256")]
    settings: dict[str, Any] = {
        "use_dictionary": light,
        "compression": {**dict.fromkeys(light, "zstd"), "images.list.element": "none"},
        "write_statistics": light,
    }
    return write_rows((columns_of(row, target.parent) for row in table), target, schema, **settings)


def columns_of(row: VLMPair, folder: Path) -> dict[str, Any]:
    """``row`` as cells of the columns; video paths relative to ``folder``."""
    kept = _Kept(folder)
    layout: dict[str, Any] = {name: kept.images(getattr(row, name)) for name in _IMAGES}
    layout |= {name: kept.videos(getattr(row, name)) for name in _VIDEOS}
    layout["branches"] = {name: kept.images(images) for name, images in row.branch_images.items()}
    try:
        extras = dumps_extras(row.extras)
    except ValueError as error:
        raise ValueError(f"{row.sample_id}: {error}") from error
    prompt = [[message.role, [_plain(part) for part in message.content]] for message in row.prompt]
    return {
        "sample_id": row.sample_id,
        "prompt": json.dumps(prompt, ensure_ascii=False),
        "chosen": row.chosen,
        "rejected": row.rejected,
        "preference": row.preference,
        "margin": row.margin,
        "user_id": row.user_id,
        "extras": extras,
        "chosen_weights": _dumped(row.chosen_weights),
        "rejected_weights": _dumped(row.rejected_weights),
        "layout": json.dumps({name: value for name, value in layout.items() if value not in (None, {})}),
        "images": kept.pictures,
        "image_sha256": list(kept.digests),
    }


class _Kept:
    """Pictures of a row, each once; equal bytes are one picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.pictures: list[bytes] = []
        self.digests: dict[str, int] = {}

    def images(self, images: Sequence[ImageBytes] | None) -> list[int] | None:
        return None if images is None else [self._place(image) for image in images]

    def videos(self, videos: Sequence[Video] | None) -> list[dict[str, Any]] | None:
        return None if videos is None else [self._video(video) for video in videos]

    def _video(self, video: Video) -> dict[str, Any]:
        if video.path is None:
            return {"frames": self.images(video.frames), "fps": video.fps}
        path = video.path.resolve()
        inside = path.is_relative_to(self.folder)
        return {"path": path.relative_to(self.folder).as_posix() if inside else str(path), "fps": video.fps}

    def _place(self, image: ImageBytes) -> int:
        try:
            data = image.read()
        except OSError as error:
            raise ValueError(f"{image.origin}: cannot be read ({type(error).__name__}: {error})") from error
        place = self.digests.setdefault(hashlib.sha256(data).hexdigest(), len(self.pictures))
        if place == len(self.pictures):
            self.pictures.append(data)
        return place


def _plain(part: Part) -> Any:
    if isinstance(part, str):
        return part
    return {"image": part.index} if isinstance(part, ImagePart) else {"video": part.index}


def _dumped(weights: TokenWeights | None) -> str | None:
    if weights is None:
        return None
    return json.dumps({"spans": weights.spans, "rest": weights.rest, "tokens": weights.tokens})
