"""The row of vision-language models: a conversation, two responses, and whatever pictures and videos they are about."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from mmalign.types.rows import ImageBytes

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class ImagePart:
    """Where picture number ``index`` (from 0) of the row stands in a message."""

    index: int


@dataclass(frozen=True)
class VideoPart:
    """Where video number ``index`` (from 0) of the row stands in a message."""

    index: int


Part = str | ImagePart | VideoPart


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and its texts, pictures and videos in order."""

    role: Role
    content: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r} must be one of {', '.join(ROLES)}")
        for part in self.content:
            if not isinstance(part, str | ImagePart | VideoPart):
                raise ValueError(
                    f"{self.role} message: {part!r} is a {type(part).__name__}; parts are texts, ImagePart or VideoPart"
                )

    @property
    def text(self) -> str:
        """The texts alone, joined without anything between them."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def marked_text(self) -> str:
        """The texts with ``<image>`` and ``<video>`` where pictures and videos stand."""
        marks = {ImagePart: "<image>", VideoPart: "<video>"}
        return "".join(part if isinstance(part, str) else marks[type(part)] for part in self.content)


def without_pictures(messages: Sequence[Message]) -> tuple[Message, ...]:
    """``messages`` with their texts alone: no picture or video is a different thing from a blank one."""
    return tuple(
        Message(message.role, kept or ("",))
        for message in messages
        for kept in [tuple(part for part in message.content if isinstance(part, str))]
    )


@dataclass(frozen=True)
class Video:
    """A video that has not been decoded yet: a file, or frames in order (``fps`` of them per second, where known)."""

    origin: str
    path: Path | None = None
    frames: tuple[ImageBytes, ...] = ()
    fps: float | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.frames):
            raise ValueError(f"{self.origin}: a Video holds either a path or frames, not both and not neither")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"{self.origin}: fps={self.fps!r} must be a number above 0")


@dataclass(frozen=True)
class Clip:
    """The decoded frames of a video that a model is shown, in order, ``fps`` of them per second."""

    frames: tuple[Image, ...]
    fps: float


@dataclass(frozen=True)
class TokenWeights:
    """What each token of a response counts in its score, by stretches of characters or token by token.

    ``spans``: (start, end, weight), characters [start, end) of the response, in order and apart; everything else counts
    ``rest``. They hold under any tokenizer (RLHF-V's corrected segments, for instance). ``tokens``: one weight for
    each token of the response without a template or an end token, which count ``rest``; only good for the tokenizer
    that made them. Give one of the two.
    """

    spans: tuple[tuple[int, int, float], ...] = ()
    rest: float = 1.0
    tokens: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.spans and self.tokens is not None:
            raise ValueError("token weights have spans and tokens; give one of them")
        weights = [self.rest, *(weight for *_, weight in self.spans), *(self.tokens or ())]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            wrong = next(weight for weight in weights if not (math.isfinite(weight) and weight >= 0))
            raise ValueError(f"token weight {wrong!r} must be a number of at least 0")
        before = 0
        for start, end, _ in self.spans:
            if not before <= start < end:
                raise ValueError(f"token weights: span [{start}, {end}) must be in order, apart and not empty")
            before = end

    def for_tokens(self, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """The weight of every token, whose characters ``offsets`` gives as (start, end) within the response.

        A token counts what the stretch counts that most of its characters lie in; one without characters, ``rest``.
        ValueError where ``tokens`` is set and there are not as many tokens with characters.
        """
        if self.tokens is None:
            return [self._of(start, end) for start, end in offsets]
        told = sum(start < end for start, end in offsets)
        if told != len(self.tokens):
            raise ValueError(
                f"{len(self.tokens)} token weights for {told} tokens: they were made with another tokenizer; "
                "give spans of characters instead"
            )
        weights = iter(self.tokens)
        return [next(weights) if start < end else self.rest for start, end in offsets]

    def _of(self, start: int, end: int) -> float:
        shares = [(min(end, stop) - max(start, begin), weight) for begin, stop, weight in self.spans]
        covered = sum(share for share, _ in shares if share > 0)
        most, weight = max(shares, key=lambda share: share[0], default=(0, self.rest))
        return weight if most > 0 and most >= end - start - covered else self.rest


@dataclass(frozen=True)
class VLMPair:
    """One conversation and two responses to it, of which ``chosen`` is preferred with probability ``preference``.

    ``prompt``: the turns before the response. An ``ImagePart`` or ``VideoPart`` in it stands for the picture or video
    of that number, and every picture and video stands somewhere. ``images``: pictures of both sides;
    ``chosen_images`` and ``rejected_images`` in their place where a side sees others (as many; None: ``images``), and
    likewise ``videos``. ``branch_images``: pictures of derived branches by what stands behind their ``@``
    (``{"retrieved": ...}`` for ``chosen@retrieved``). ``preference`` lies in [0.5, 1], 0.5 is a tie; ``margin`` is an
    external reward gap. ``extras`` keeps what the format says beside that (source, model, annotator, ...).
    """

    sample_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    images: tuple[ImageBytes, ...] = ()
    chosen_images: tuple[ImageBytes, ...] | None = None
    rejected_images: tuple[ImageBytes, ...] | None = None
    videos: tuple[Video, ...] = ()
    chosen_videos: tuple[Video, ...] | None = None
    rejected_videos: tuple[Video, ...] | None = None
    branch_images: Mapping[str, tuple[ImageBytes, ...]] = field(default_factory=dict)
    preference: float = 1.0
    margin: float | None = None
    chosen_weights: TokenWeights | None = None
    rejected_weights: TokenWeights | None = None
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(f"{self.sample_id}: {problem}")

    @property
    def is_tie(self) -> bool:
        """True where neither response is preferred."""
        return self.preference == 0.5

    @property
    def prompt_text(self) -> str:
        """The conversation as one text, with ``<image>`` and ``<video>`` marks: for reports and grouping."""
        if len(self.prompt) == 1:
            return self.prompt[0].marked_text
        return "\n".join(f"{message.role}: {message.marked_text}" for message in self.prompt)

    def images_of(self, side: str) -> tuple[ImageBytes, ...]:
        """Pictures that ``side`` (``chosen`` or ``rejected``) is about."""
        own = {"chosen": self.chosen_images, "rejected": self.rejected_images}[side]
        return self.images if own is None else own

    def videos_of(self, side: str) -> tuple[Video, ...]:
        """Videos that ``side`` (``chosen`` or ``rejected``) is about."""
        own = {"chosen": self.chosen_videos, "rejected": self.rejected_videos}[side]
        return self.videos if own is None else own

    @property
    def pictures(self) -> tuple[ImageBytes, ...]:
        """Every picture of the row: shared, per side, of branches, and frames of videos."""
        sides = (self.images, self.chosen_images or (), self.rejected_images or (), *self.branch_images.values())
        frames = (video.frames for video in self.all_videos)
        return tuple(image for group in (*sides, *frames) for image in group)

    @property
    def all_videos(self) -> tuple[Video, ...]:
        """Every video of the row: shared and per side."""
        return (*self.videos, *(self.chosen_videos or ()), *(self.rejected_videos or ()))


def _problems(row: VLMPair) -> Iterator[str]:
    if not row.prompt:
        yield "the prompt has no message"
    elif row.prompt[-1].role != "user":
        yield f"the prompt ends with a message of {row.prompt[-1].role}; the response must answer the user"
    for side in ("chosen", "rejected"):
        response, weights = getattr(row, side), getattr(row, f"{side}_weights")
        if not isinstance(response, str) or not response.strip():
            yield f"{side}={response!r} must be a text that is not empty"
        elif weights is not None and weights.spans and weights.spans[-1][1] > len(response):
            yield f"{side}_weights end at character {weights.spans[-1][1]} of {len(response)}"
    if not 0.5 <= row.preference <= 1:
        yield f"preference={row.preference!r} must lie between 0.5 and 1 (swap the responses)"
    if row.margin is not None and not math.isfinite(row.margin):
        yield f"margin={row.margin!r} must be a finite number"
    for name, part in (("image", ImagePart), ("video", VideoPart)):
        yield from _misplaced(row, name, part)


def _misplaced(row: VLMPair, name: str, part: type[ImagePart] | type[VideoPart]) -> Iterator[str]:
    """Marks without a picture, pictures without a mark, and sides that do not have as many."""
    of_side = row.images_of if name == "image" else row.videos_of
    chosen, rejected = len(of_side("chosen")), len(of_side("rejected"))
    if chosen != rejected:
        yield f"chosen has {chosen} {name}s and rejected {rejected}; the marks in the prompt need as many on both sides"
    marks = {piece.index for message in row.prompt for piece in message.content if isinstance(piece, part)}
    if marks != set(range(chosen)):
        without = sorted(set(range(chosen)) - marks)
        what = f"{name} {without[0]} stands nowhere" if without else f"there is no {name} {max(marks)}"
        yield f"the prompt has {len(marks)} {name} marks for {chosen} {name}s: {what}"
