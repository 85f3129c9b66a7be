"""What negatives are made from: a conversation, its pictures, and a response that is good."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmalign.types import ImageBytes, Message, VLMPair, without_pictures

__all__ = ["Answered", "without_pictures"]


@dataclass(frozen=True)
class Answered:
    """A conversation with pictures and one good response: rows for supervised tuning, or the better side of pairs.

    ``response`` is empty where there is none yet (a bare picture). ``unusable``: why nothing can be made of the row.
    """

    sample_id: str
    prompt: tuple[Message, ...]
    response: str
    images: tuple[ImageBytes, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    unusable: str = ""

    @classmethod
    def of(cls, pair: VLMPair) -> "Answered":
        """The chosen side of ``pair``; ValueError for a row with videos, which no method here makes negatives of."""
        if pair.all_videos:
            raise ValueError(f"{pair.sample_id}: negatives are made of pictures, and the row has a video")
        return cls(pair.sample_id, pair.prompt, pair.chosen, pair.images_of("chosen"), dict(pair.extras))

    def against(self, rejected: str, *, chosen: str | None = None) -> VLMPair:
        """The pair of the response (or ``chosen`` in its place) and ``rejected``."""
        better = self.response if chosen is None else chosen
        return VLMPair(self.sample_id, self.prompt, better, rejected, images=self.images, extras=self.extras)
