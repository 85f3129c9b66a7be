"""What a format's parser makes of one record: texts in order, and references to pictures that are not read yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.types import ImagePart, Message, Part, Role, TokenWeights, VideoPart

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
_MARGINS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
LABELS = ("preference", "margin", "user_id", *(name for pair in _MARGINS for name in pair))


class Broken(ValueError):
    """A record that cannot be used. The text names field and value."""


@dataclass
class Draft:
    """A row without its pictures: ``images`` and the like hold references (paths, bytes, structs of both) in order.

    ``preference`` may lie below one half; the row is then turned round. ``extras`` are the fields that no other part
    of the row tells.
    """

    prompt: Sequence[Message]
    chosen: str
    rejected: str
    images: Sequence[Any] = ()
    chosen_images: Sequence[Any] | None = None
    rejected_images: Sequence[Any] | None = None
    videos: Sequence[Any] = ()
    chosen_videos: Sequence[Any] | None = None
    rejected_videos: Sequence[Any] | None = None
    branch_images: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    preference: float = 1.0
    margin: float | None = None
    chosen_weights: TokenWeights | None = None
    rejected_weights: TokenWeights | None = None
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    sample_id: str | None = None


def text_in(fields: Mapping[str, Any], name: str) -> str:
    """The text in field ``name``. Broken where there is none."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"{name}={shortened(value)} must be a text that is not empty")
    return value


def listed(fields: Mapping[str, Any], *names: str) -> list[Any]:
    """The references in the first of the fields ``names`` that is there: a list, or one reference alone."""
    given = [name for name in names if fields.get(name) is not None]
    if len(given) > 1:
        raise Broken(f"has {' and '.join(given)}; give one of them")
    if not given:
        return []
    value = fields[given[0]]
    return list(value) if isinstance(value, list | tuple) else [value]


def labels_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``preference``, ``margin`` (or the difference of two scores) and ``user_id``, as keywords of a Draft."""
    found: dict[str, Any] = {}
    for name in ("preference", "margin"):
        if fields.get(name) is not None:
            found[name] = number_in(fields, name)
    for chosen, rejected in _MARGINS:
        if "margin" not in found and fields.get(chosen) is not None and fields.get(rejected) is not None:
            found["margin"] = number_in(fields, chosen) - number_in(fields, rejected)
    if not 0 <= found.get("preference", 1.0) <= 1:
        raise Broken(f"preference={fields['preference']!r} must lie between 0 and 1")
    if fields.get("user_id") is not None:
        found["user_id"] = str(fields["user_id"])
    return found


def number_in(fields: Mapping[str, Any], name: str) -> float:
    """The number in field ``name``. Broken where it is none."""
    value = fields[name]
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise Broken(f"{name}={shortened(value)} must be a finite number")
    return number


def rest_of(fields: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """Fields that the row has no other place for."""
    known = {*used, "preference", "user_id", "margin"}
    return {name: value for name, value in fields.items() if name not in known and value is not None}


class Marks:
    """Turns marked texts into messages: the first mark is picture 0, the next one picture 1, through all turns.

    A line break that only keeps a mark and the text apart is dropped, for that is the chat template's business.
    """

    def __init__(self, image: str = IMAGE_MARK, video: str = VIDEO_MARK) -> None:
        self.image, self.video = image, video
        self.images = self.videos = 0

    def message(self, role: Role, text: str) -> Message:
        """One turn. Empty texts between marks are left out."""
        parts: list[Part] = []
        for piece in _split(text, (self.image, self.video)):
            if piece == self.image:
                parts.append(ImagePart(self.images))
                self.images += 1
            elif piece == self.video:
                parts.append(VideoPart(self.videos))
                self.videos += 1
            else:
                parts.append(piece)
        return Message(role, tuple(parts) or ("",))

    def response(self, text: str, name: str) -> str:
        """``text``, which must hold no mark: pictures inside a response have no place in a pair."""
        for mark in (self.image, self.video):
            if mark in text:
                raise Broken(f"{name} holds the mark {mark}; a response is a text")
        return text


def with_media_first(messages: Sequence[Message], images: int, videos: int) -> list[Message]:
    """``messages`` as they are where they have marks; else all pictures and videos before the first user's text.

    That is where published loaders put what a record names without a mark. Broken where only some have a mark.
    """
    has = {
        kind: sum(isinstance(part, kind) for message in messages for part in message.content)
        for kind in (ImagePart, VideoPart)
    }
    first: list[Part] = []
    for kind, name, wanted in ((ImagePart, "image", images), (VideoPart, "video", videos)):
        if has[kind] == 0:
            first += [kind(index) for index in range(wanted)]
        elif has[kind] != wanted:
            raise Broken(f"the prompt has {has[kind]} {name} marks for {wanted} {name}s")
    place = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if not first or place is None:
        return list(messages)
    turned = Message("user", (*first, *messages[place].content))
    return [*messages[:place], turned, *messages[place + 1 :]]


def shortened(value: Any, limit: int = 60) -> str:
    """``repr(value)``, cut in the middle of nowhere where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """``text`` cut at ``marks``, which stay as pieces of their own."""
    pieces = [text]
    for mark in marks:
        cut: list[str] = []
        for piece in pieces:
            for number, part in enumerate(piece.split(mark) if piece not in marks else [piece]):
                cut += [mark, part] if number else [part]
        pieces = cut
    cleaned = []
    for index, piece in enumerate(pieces):
        if piece not in marks:
            piece = piece.removeprefix("\n") if index and pieces[index - 1] in marks else piece
            piece = piece.removesuffix("\n") if index + 1 < len(pieces) and pieces[index + 1] in marks else piece
        if piece:
            cleaned.append(piece)
    return cleaned
