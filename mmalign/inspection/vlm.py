"""One pass over VLM rows: every picture read, decoded and hashed, every response measured."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from mmalign.data import UnreadableImage, decode
from mmalign.data.table import RowTable
from mmalign.data.verification import problem_of
from mmalign.inspection.contact_sheet import CELL
from mmalign.pictures import grid
from mmalign.types import ImageBytes, ImagePart, VLMPair
from mmalign.vlm_data.segments import changed_spans


@dataclass
class VLMInspection:
    """What a table of VLM rows holds. Counts are of the ``looked_at`` rows, the reader's report is of the whole source.

    ``words``: 5 %, median and 95 % of the words of a side's responses; ``chosen_longer``: share of rows whose chosen
    response has more characters than the rejected one, which a policy may learn in place of what was meant.
    ``changed``: mean share of characters that differ between responses. ``equal_responses``: rows whose sides are the
    same text about the same pictures. ``duplicates``: rows that say what an earlier one says; ``contradictions``: pairs
    of rows that prefer the two responses the other way round.
    """

    source: str
    report: str
    rows: int
    looked_at: int
    pictures: int = 0
    pictures_per_row: dict[str, int] = field(default_factory=dict)
    other_pictures_rejected: int = 0
    branches: dict[str, int] = field(default_factory=dict)
    videos: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)
    source_broken: list[tuple[str, str]] = field(default_factory=list)
    prompts: int = 0
    users: int = 0
    ties: int = 0
    soft: int = 0
    margins: dict[str, float] | None = None
    words: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen_longer: float | None = None
    changed: float | None = None
    weighted: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    distinct_pictures: int = 0
    equal_responses: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    contradictions: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for ``inspection.json``."""
        return asdict(self)


def inspect_vlm_table(
    table: RowTable[VLMPair], *, sample: int | None = None, progress: Callable[[int], None] | None = None
) -> VLMInspection:
    """Go through ``table`` (or ``sample`` rows spread evenly over it), decoding every picture.

    Broken pictures, and videos that are not there, are findings here and not errors.
    """
    indices: Sequence[int] = range(len(table))
    if sample is not None and sample < len(table):
        indices = np.linspace(0, len(table) - 1, sample).round().astype(int).tolist()
    report = table.report
    found = VLMInspection(report.source, str(report), report.rows, len(indices), source_broken=list(report.corrupt))
    counts = _Counts(found)
    for index in indices:
        counts.add(table[index])
        if progress is not None:
            progress(1)
    counts.summarise()
    return found


class _Counts:
    """What is gathered row by row."""

    def __init__(self, found: VLMInspection) -> None:
        self.found = found
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.per_row: Counter[int] = Counter()
        self.turns: Counter[int] = Counter()
        self.branches: Counter[str] = Counter()
        self.digests: set[str] = set()
        self.prompts: set[str] = set()
        self.users: set[str] = set()
        self.words: dict[str, list[int]] = {"chosen": [], "rejected": []}
        self.longer: list[bool] = []
        self.changed: list[float] = []
        self.margins: list[float] = []
        self.seen: dict[tuple[str, ...], str] = {}

    def add(self, row: VLMPair) -> None:
        """Count one row."""
        found = self.found
        problem = problem_of(row)
        if problem is not None:
            found.broken.append((row.sample_id, problem))
        self._pictures(row)
        self._labels(row)
        self._responses(row)
        if problem is None:
            self._compare(row)

    def _pictures(self, row: VLMPair) -> None:
        for image in row.pictures:
            try:
                size = decode(image).size
            except UnreadableImage:
                continue
            self.found.pictures += 1
            self.sizes[size] += 1
            self.digests.add(_digest(image))
        self.per_row[len(row.images_of("chosen"))] += 1
        self.branches.update(row.branch_images.keys())  # a mapping would be added up, value by value
        self.found.videos += len(row.all_videos)
        self.found.other_pictures_rejected += row.rejected_images is not None or row.chosen_images is not None

    def _labels(self, row: VLMPair) -> None:
        self.found.ties += row.is_tie
        self.found.soft += 0.5 < row.preference < 1
        self.found.weighted += row.chosen_weights is not None or row.rejected_weights is not None
        self.prompts.add(row.prompt_text)
        self.turns[sum(message.role == "user" for message in row.prompt)] += 1
        if row.user_id is not None:
            self.users.add(row.user_id)
        if row.margin is not None:
            self.margins.append(row.margin)

    def _responses(self, row: VLMPair) -> None:
        for side in ("chosen", "rejected"):
            self.words[side].append(len(getattr(row, side).split()))
        self.longer.append(len(row.chosen) > len(row.rejected))
        spans = changed_spans(row.chosen, row.rejected)
        different = sum(end - start for side in spans for start, end in side)
        self.changed.append(different / (len(row.chosen) + len(row.rejected)))

    def _compare(self, row: VLMPair) -> None:
        sides = {
            side: (getattr(row, side), *map(_digest, row.images_of(side)), *(str(v.path) for v in row.videos_of(side)))
            for side in ("chosen", "rejected")
        }
        if sides["chosen"] == sides["rejected"]:
            self.found.equal_responses.append(row.sample_id)
            return
        key = (row.prompt_text, *sides["chosen"], *sides["rejected"])
        turned = (row.prompt_text, *sides["rejected"], *sides["chosen"])
        if key in self.seen:
            self.found.duplicates.append((self.seen[key], row.sample_id))
        elif turned in self.seen and not row.is_tie:
            self.found.contradictions.append((self.seen[turned], row.sample_id))
        self.seen.setdefault(key, row.sample_id)

    def summarise(self) -> None:
        """Fill in what needs all rows."""
        found = self.found
        found.prompts, found.users, found.distinct_pictures = len(self.prompts), len(self.users), len(self.digests)
        found.sizes = {f"{width}x{height}": number for (width, height), number in self.sizes.most_common()}
        found.pictures_per_row = {str(k): number for k, number in sorted(self.per_row.items())}
        found.turns = {str(k): number for k, number in sorted(self.turns.items())}
        found.branches = dict(self.branches)
        if self.longer:
            found.words = {side: _quantiles(values) for side, values in self.words.items()}
            found.chosen_longer, found.changed = float(np.mean(self.longer)), float(np.mean(self.changed))
        found.margins = _quantiles(self.margins) if self.margins else None


def vlm_contact_sheet(table: RowTable[VLMPair], rows: int = 8) -> Image.Image | None:
    """Up to ``rows`` readable rows, spread evenly: the pictures, and prompt with both responses beside them.

    None where no row has pictures that can be read.
    """
    shown = []
    for index in dict.fromkeys(np.linspace(0, len(table) - 1, 3 * rows).round().astype(int).tolist()):
        row = table[index]
        pictures = _thumbnails(row)
        if pictures:
            shown.append((_told(row), pictures))
    if not shown:
        return None
    shown = [shown[i] for i in dict.fromkeys(np.linspace(0, len(shown) - 1, rows).round().astype(int).tolist())]
    widest = max(len(pictures) for _, pictures in shown)
    blank = Image.new("RGB", (CELL, CELL), "white")
    return grid(
        [[*pictures, *[blank] * (widest - len(pictures))] for _, pictures in shown], row_labels=[t for t, _ in shown]
    )


def _thumbnails(row: VLMPair) -> list[Image.Image]:
    frames = [frame for video in row.videos_of("chosen") for frame in video.frames[:4]]
    others = [image for image in row.images_of("rejected") if image not in row.images_of("chosen")]
    found = []
    try:
        for image in (*row.images_of("chosen"), *others, *frames):
            picture = decode(image)
            picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            found.append(picture)
    except UnreadableImage:
        return []
    return found


def _told(row: VLMPair) -> str:
    asked = "".join(part if isinstance(part, str) else "" for part in row.prompt[-1].content).strip()
    pictures = sum(isinstance(part, ImagePart) for message in row.prompt for part in message.content)
    return f"{_short(asked, 30)} ({pictures})  +{_short(row.chosen, 40)}  -{_short(row.rejected, 40)}"


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def _digest(image: ImageBytes) -> str:
    return hashlib.sha256(image.read()).hexdigest()


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    lowest, middle, highest = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"5 %": lowest, "median": middle, "95 %": highest}
