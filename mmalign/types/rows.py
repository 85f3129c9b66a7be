"""Rows of image generators: pairs, rankings and single pictures with their labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ImageBytes:
    """An encoded image (PNG, JPEG, WebP, ...) that has not been decoded yet, and where it came from.

    ``origin`` names file, row and column, so that every later error about this image can say where it is.
    Exactly one of ``data`` and ``path`` is set.
    """

    origin: str
    data: bytes | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.path is None):
            raise ValueError(f"{self.origin}: an ImageBytes holds either data or a path, not both and not neither")

    def read(self) -> bytes:
        """The encoded bytes, read from disk if they are not in memory."""
        return self.data if self.data is not None else self.path.read_bytes()  # type: ignore[union-attr]


@dataclass(frozen=True)
class PreferencePair:
    """One prompt and two images of which ``chosen`` is preferred with probability ``preference``.

    ``preference`` lies in [0.5, 1]: 1 is a hard label, 0.5 a tie (a source orders each pair so that it is >= 0.5).
    ``margin`` is an external reward gap (reward of chosen - reward of rejected), where the data has one.
    """

    sample_id: str
    prompt: str
    chosen: ImageBytes
    rejected: ImageBytes
    preference: float = 1.0
    margin: float | None = None
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_tie(self) -> bool:
        """True where neither side is preferred."""
        return self.preference == 0.5

    @property
    def images(self) -> tuple[ImageBytes, ...]:
        """Chosen, then rejected."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class Ranking:
    """One prompt and k >= 2 images with one label each: higher = better, equal = tied.

    Labels are on the source's own scale (minus the rank, a rating, a win probability): see the source. A missing label
    is not a row's business: a source leaves such candidates, or the row, out and counts them.
    """

    sample_id: str
    prompt: str
    candidates: tuple[ImageBytes, ...]
    labels: tuple[float, ...]
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(
                f"{self.sample_id}: {len(self.candidates)} candidates with {len(self.labels)} labels; a ranking has "
                "at least two candidates and one label for each"
            )

    @property
    def images(self) -> tuple[ImageBytes, ...]:
        """The candidates, in the order of ``labels``."""
        return self.candidates


@dataclass(frozen=True)
class Unary:
    """One prompt and one image that is desirable or not (KTO)."""

    sample_id: str
    prompt: str
    image: ImageBytes
    desirable: bool
    user_id: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImageBytes, ...]:
        """The one image."""
        return (self.image,)
