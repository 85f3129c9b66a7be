"""What the writers share: rows that a form can hold, marked texts, pictures as files, and files that appear whole."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.data.decoding import UnreadableImage, decode
from mmalign.data.extras import dumps_extras
from mmalign.data.table import RowTable
from mmalign.types import ImageBytes, ImagePart, Message, Video, VideoPart, VLMPair
from mmalign.vlm_data.drafts import IMAGE_MARK, VIDEO_MARK

ROWS_PER_GROUP, GROUP_BYTES = 100, 64 * 2**20
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}


class Plain(NamedTuple):
    """Pictures and videos in the order of their marks, and what of the row the form has no place for."""

    images: list[ImageBytes]
    videos: list[Video]
    left_out: set[str]


def plain_row(row: VLMPair, form: str, *, videos: bool = True, rejected_images: bool = False) -> Plain:
    """What a form with one list of pictures takes. ValueError for a row whose meaning it would change."""
    problem = None
    if row.is_tie:
        problem = "is a tie, and other tools would read it as a preference; leave ties out (data.ties=drop)"
    elif row.chosen_videos is not None or row.rejected_videos is not None:
        problem = "has other videos for a side"
    elif row.chosen_images is not None or (row.rejected_images is not None and not rejected_images):
        problem = "has other pictures for a side"
    elif row.videos and not videos:
        problem = "has a video"
    if problem is not None:
        raise ValueError(f"{row.sample_id}: {problem}; {form} cannot hold it (canonical can); nothing was written")
    left_out = {name for name in ("chosen_weights", "rejected_weights") if getattr(row, name) is not None}
    left_out |= {f"pictures of @{name}" for name in row.branch_images}
    shown = in_order(row, row.images)
    return Plain(shown, [row.videos[part.index] for part in _parts(row, VideoPart)], left_out)


def in_order(row: VLMPair, images: tuple[ImageBytes, ...]) -> list[ImageBytes]:
    """``images`` in the order in which the prompt's marks name them, once for each mark."""
    return [images[part.index] for part in _parts(row, ImagePart)]


def _parts(row: VLMPair, kind: type) -> list[Any]:
    return [part for message in row.prompt for part in message.content if isinstance(part, kind)]


def marked(message: Message, sample_id: str, *, line_break: bool) -> str:
    """Text with ``<image>`` and ``<video>`` marks that ``drafts.Marks`` reads back; ``line_break`` behind each mark."""
    text = ""
    for place, part in enumerate(message.content):
        if isinstance(part, str):
            for mark in (IMAGE_MARK, VIDEO_MARK):
                if mark in part:
                    raise ValueError(f"{sample_id}: a text holds {mark}, which this form reads as a mark")
            before = place and not isinstance(message.content[place - 1], str)
            after = place + 1 < len(message.content) and not isinstance(message.content[place + 1], str)
            text += "\n" if before and (line_break or part.startswith("\n")) else ""
            text += part + ("\n" if after and part.endswith("\n") else "")
        else:
            text += IMAGE_MARK if isinstance(part, ImagePart) else VIDEO_MARK
    return text


def judged(row: VLMPair) -> dict[str, Any]:
    """Labels that a record tells beside the responses, where there are any."""
    found = {} if row.preference == 1.0 else {"preference": row.preference}
    found |= {} if row.margin is None else {"margin": row.margin}
    return found if row.user_id is None else {**found, "user_id": row.user_id}


def with_extras(record: dict[str, Any], row: VLMPair) -> dict[str, Any]:
    """``record`` with the row's extras as further fields. ValueError where a name is taken."""
    extras = json.loads(dumps_extras(row.extras) or "{}")
    clash = sorted(extras.keys() & record.keys() - {"id"})
    if clash:
        raise ValueError(f"{row.sample_id}: the extra field {clash[0]!r} has the name of a field of this form")
    return {**record, **extras}


def picture_bytes(image: ImageBytes) -> bytes:
    """The encoded bytes of a picture that decodes; a broken one would only be found by whoever reads the copy."""
    try:
        decode(image)
        return image.read()
    except UnreadableImage as error:
        raise ValueError(
            f"nothing was written: {error}. Leave such rows out by opening the table with verify"
        ) from error


class Folder:
    """A new folder for a file of records and its pictures, each picture once, byte for byte, named by its digest."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).expanduser()
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not empty; choose another folder")
        (self.path / "images").mkdir(parents=True, exist_ok=True)

    def save(self, images: Iterable[ImageBytes]) -> list[str]:
        """Paths of ``images`` relative to the folder."""
        names = []
        for image in images:
            data = picture_bytes(image)
            suffix = next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), "img")
            name = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{suffix}"
            if not (self.path / name).exists():
                (self.path / name).write_bytes(data)
            names.append(name)
        return names

    def videos(self, videos: Iterable[Video]) -> list[Any]:
        """Absolute paths of video files (which are not copied), or lists of frames."""
        return [str(video.path.resolve()) if video.path is not None else self.save(video.frames) for video in videos]


def write_json(table: RowTable[VLMPair], file: Path, record_of: Callable[[VLMPair], Mapping[str, Any]]) -> Path:
    """``file`` (``.json``: an array; ``.jsonl``: lines) with the record of every row."""
    array = file.suffix == ".json"
    with whole(file) as partial, partial.open("w", encoding="utf-8") as out:
        for number, row in enumerate(table):
            out.write(("[\n" if number == 0 else ",\n") if array else "")
            out.write(json.dumps(record_of(row), ensure_ascii=False) + ("" if array else "\n"))
        out.write("\n]\n" if array else "")
        out.flush()
        os.fsync(out.fileno())
    return file


def write_rows(rows: Iterable[dict[str, Any]], path: str | Path, schema: pa.Schema, **settings: Any) -> Path:
    """One parquet file, in row groups of a hundred rows or 64 MiB of pictures."""
    target = Path(path).expanduser()
    if target.suffix != ".parquet" or not target.stem:
        raise ValueError(f"path={path}: give a file name that ends in .parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial, partial.open("wb") as out:
        with pq.ParquetWriter(out, schema, write_batch_size=8, **settings) as writer:
            for group in _groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
        out.flush()
        os.fsync(out.fileno())
    return target


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        pictures = row["images"] if "images" in row else [row["image"]]
        size += sum(len(x if isinstance(x, bytes) else x["bytes"]) for x in pictures)
        if len(group) == ROWS_PER_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Another name to write under; what is there becomes ``file`` at the end, and nothing does after an error."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
