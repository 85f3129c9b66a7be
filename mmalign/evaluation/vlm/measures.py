"""Measures that are ratios of counts, for two models on the same pictures, with intervals that resample pictures.

Several questions are about one picture and several splits ask about the same pictures, so the picture is what is drawn:
counts are kept per picture, and a resample weighs them. Both models get the same draws: differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.evaluation.winrate import Estimate, interval, prompt_draws

Array = NDArray[np.float64]
Counts = Mapping[str, Array]
Better = Literal["higher", "lower"] | None
Unit = Literal["share", "number"]


@dataclass(frozen=True)
class Measure:
    """``value`` of summed counts, elementwise over draws; NaN where it is not defined.

    ``point``: where the official script rounds on the way, its own number of one set of counts (None: not defined);
    intervals are of ``value``. ``better``: which way is good, None for what is neither, such as length.
    """

    name: str
    value: Callable[[Counts], Array]
    better: Better = None
    unit: Unit = "share"
    point: Callable[[Mapping[str, float]], float | None] | None = None


@dataclass(frozen=True)
class MeasureGroup:
    """Measures of one title and rule."""

    title: str
    rules: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Tally:
    """Counts of one model: name -> [pictures], in the order of ``pictures``."""

    pictures: tuple[str, ...]
    counts: Mapping[str, Array]


class TallyBuilder:
    """Adds up counts by picture."""

    def __init__(self, pictures: Sequence[str], names: Sequence[str]) -> None:
        self._place = {picture: index for index, picture in enumerate(dict.fromkeys(pictures))}
        self._counts = {name: np.zeros(len(self._place)) for name in names}

    def add(self, picture: str, name: str, amount: float = 1.0) -> None:
        """Count ``amount`` for ``picture``."""
        self._counts[name][self._place[picture]] += amount

    def tally(self) -> Tally:
        """What was counted."""
        return Tally(tuple(self._place), self._counts)


@dataclass(frozen=True)
class Comparison:
    """A measure of both models. An Estimate is None where the measure is not defined (no yes at all: no precision)."""

    name: str
    base: Estimate | None
    aligned: Estimate | None
    difference: Estimate | None
    better: Better
    unit: Unit

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """By the interval of the difference: whether it lies on one side of zero, and whether that side is good."""
        if self.difference is None or self.better is None or self.difference.low <= 0 <= self.difference.high:
            return "unclear"
        return "better" if (self.difference.low > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Section:
    """Compared measures under one title and rule."""

    title: str
    rules: str
    rows: tuple[Comparison, ...]


def ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    missing = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator != 0)


def harmonic_mean(precision: Array, recall: Array) -> Array:
    """2 P R / (P + R), NaN where either is not defined or both are 0."""
    return ratio(2 * precision * recall, precision + recall)


def compare_tallies(
    base: Tally, aligned: Tally, groups: Sequence[MeasureGroup], *, bootstrap: int = 2000, seed: int = 0
) -> list[Section]:
    """Every measure of both models and aligned - base, with 95 % intervals over resampled pictures.

    ValueError for two models that were not asked about the same pictures, and for fewer than two pictures.
    """
    if base.pictures != aligned.pictures:
        raise ValueError("base and aligned were not asked about the same pictures, so their difference is not paired")
    if len(base.pictures) < 2:
        raise ValueError("all questions are about one picture, and an interval over pictures needs two: give more")
    draws = prompt_draws(len(base.pictures), bootstrap=bootstrap, seed=seed)
    sums = [{name: values.sum() for name, values in tally.counts.items()} for tally in (base, aligned)]
    drawn = [{name: draws @ values for name, values in tally.counts.items()} for tally in (base, aligned)]
    return [
        Section(group.title, group.rules, tuple(_compare(measure, sums, drawn) for measure in group.measures))
        for group in groups
    ]


def _compare(measure: Measure, sums: Sequence[Counts], drawn: Sequence[Counts]) -> Comparison:
    points = [_point(measure, counts) for counts in sums]
    spreads = [measure.value(counts) for counts in drawn]
    base, aligned = (_estimate(point, spread) for point, spread in zip(points, spreads, strict=True))
    difference = None
    if points[0] is not None and points[1] is not None:
        difference = _estimate(points[1] - points[0], spreads[1] - spreads[0])
    return Comparison(measure.name, base, aligned, difference, measure.better, measure.unit)


def _point(measure: Measure, counts: Counts) -> float | None:
    if measure.point is not None:
        return measure.point({name: float(value) for name, value in counts.items()})
    value = float(measure.value(counts))
    return value if np.isfinite(value) else None


def _estimate(point: float | None, spread: Array) -> Estimate | None:
    """The interval is over the resamples in which the measure is defined; every one where it is rare in small data."""
    defined = spread[np.isfinite(spread)]
    if point is None or not len(defined):
        return None
    return Estimate(point, *interval(defined))
