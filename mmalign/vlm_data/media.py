"""From a record's references to pictures and videos: paths, bytes, data URLs, structs of the ``datasets`` library."""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.types import ImageBytes, Video, VLMPair
from mmalign.vlm_data.drafts import Broken, Draft, shortened

_ADDRESSES = ("http://", "https://", "s3://", "gs://", "hf://")
_VIDEO_ENDS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".gif", ".wmv", ".3gp")


@dataclass(frozen=True)
class Where:
    """Where a record stands, for errors, and the folder that its paths start from."""

    file: str
    row: int
    root: Path | None = None
    indexing: bool = False  # pictures' bytes have not been read, and an empty reference may still turn out to have some

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


def pair_of(draft: Draft, where: Where, sample_id: str) -> VLMPair:
    """The row that ``draft`` describes, its better response first. Broken or ValueError names field and value."""
    sides = {side: _side(draft, side, where) for side in ("chosen", "rejected")}
    first, second = ("chosen", "rejected") if draft.preference >= 0.5 else ("rejected", "chosen")
    margin = draft.margin
    if draft.preference < 0.5 and margin is not None:
        margin = -margin
    extras = dict(draft.extras)
    return VLMPair(
        sample_id=sample_id,
        prompt=tuple(draft.prompt),
        images=images_of(draft.images, where, "images"),
        videos=videos_of(draft.videos, where, "videos"),
        branch_images={name: images_of(refs, where, name) for name, refs in draft.branch_images.items()},
        preference=max(draft.preference, 1 - draft.preference),
        margin=margin,
        user_id=draft.user_id,
        extras=extras,
        chosen=sides[first]["text"],
        chosen_images=sides[first]["images"],
        chosen_videos=sides[first]["videos"],
        chosen_weights=sides[first]["weights"],
        rejected=sides[second]["text"],
        rejected_images=sides[second]["images"],
        rejected_videos=sides[second]["videos"],
        rejected_weights=sides[second]["weights"],
    )


def _side(draft: Draft, side: str, where: Where) -> dict[str, Any]:
    images, videos = getattr(draft, f"{side}_images"), getattr(draft, f"{side}_videos")
    return {
        "text": getattr(draft, side),
        "weights": getattr(draft, f"{side}_weights"),
        "images": None if images is None else images_of(images, where, f"{side}_images"),
        "videos": None if videos is None else videos_of(videos, where, f"{side}_videos"),
    }


def images_of(references: Sequence[Any], where: Where, name: str) -> tuple[ImageBytes, ...]:
    """A picture for each reference; files are not looked at."""
    return tuple(image_of(reference, where, f"{name}[{number}]") for number, reference in enumerate(references))


def image_of(reference: Any, where: Where, name: str) -> ImageBytes:
    """One picture: from bytes, a struct with ``bytes`` or ``path``, a data URL, or a path below ``where.root``."""
    origin = f"{where} {name}"
    if isinstance(reference, ImageBytes):
        return reference
    if isinstance(reference, Mapping):
        data = reference.get("bytes")
        if data is not None:
            return image_of(data, where, name)
        inside = next((reference[key] for key in ("path", "image", "url") if reference.get(key) is not None), None)
        if where.indexing:
            return ImageBytes(origin, data=b"")
        return image_of(inside, where, name)
    if isinstance(reference, bytes):
        return ImageBytes(origin, data=reference)
    if not isinstance(reference, str) or not reference.strip():
        if where.indexing and reference is None:
            return ImageBytes(origin, data=b"")
        raise Broken(f"{name}={shortened(reference)} names no picture; give a path or its bytes")
    if reference.startswith("data:"):
        return ImageBytes(origin, data=_from_data_url(reference, name))
    return ImageBytes(f"{origin}={shortened(reference)}", path=_path(reference, where, name))


def videos_of(references: Sequence[Any], where: Where, name: str) -> tuple[Video, ...]:
    """A video for each reference: a path, a list of frames, or a struct with ``path`` or ``frames`` and ``fps``."""
    return tuple(_video(reference, where, f"{name}[{number}]") for number, reference in enumerate(references))


def _video(reference: Any, where: Where, name: str) -> Video:
    if isinstance(reference, Video):
        return reference
    fps = None
    if isinstance(reference, Mapping):
        fps, frames = reference.get("fps"), reference.get("frames")
        reference = frames if frames is not None else reference.get("path")
    if isinstance(reference, list | tuple):
        if not reference:
            raise Broken(f"{name} has no frames")
        return Video(f"{where} {name}", frames=images_of(reference, where, f"{name}.frames"), fps=fps)
    if not isinstance(reference, str) or not reference.strip():
        raise Broken(f"{name}={shortened(reference)} names no video; give a path or a list of frames")
    return Video(f"{where} {name}={shortened(reference)}", path=_path(reference, where, name), fps=fps)


def is_video(reference: Any) -> bool:
    """Whether a path is that of a video, by its end."""
    return isinstance(reference, str) and reference.lower().endswith(_VIDEO_ENDS)


def _path(reference: str, where: Where, name: str) -> Path:
    if reference.startswith(_ADDRESSES):
        raise Broken(f"{name}={shortened(reference)} is an address, and nothing is fetched; load it and give its path")
    path = Path(reference.removeprefix("file://"))
    return path if where.root is None else where.root / path


def _from_data_url(reference: str, name: str) -> bytes:
    head, _, body = reference.partition(",")
    if not head.endswith(";base64"):
        raise Broken(f"{name}={shortened(reference)} is a data URL that is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise Broken(f"{name}={shortened(reference)} is not base64 ({error})") from error


def paths_mark(row: VLMPair) -> str:
    """Names and sizes of the files a row refers to; one that is missing counts as such."""
    paths = [image.path for image in row.pictures] + [video.path for video in row.all_videos]
    return "".join(f"{os.fspath(path)}\0{_size(path)}\n" for path in paths if path is not None)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
