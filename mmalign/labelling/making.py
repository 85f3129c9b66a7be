"""Preference rows out of scored pictures: pairs, soft pairs, rankings or unary rows, each with its provenance.

With several rewards, scales do not compare, so pictures are ordered by psi, the mean probability of winning over the
rewards and over the other pictures of the prompt (Syn-Pic, RankDPO, arXiv 2410.18013); with one, by its score.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmalign.data.table import count, named
from mmalign.evaluation.combining import Array, win_probability
from mmalign.labelling.generations import Candidates
from mmalign.labelling.scoring import ScoredRow
from mmalign.types import ImageBytes, PreferencePair, Ranking, Row, Unary

_Row = tuple[Row, int, tuple[int, ...]]  # a row, the number of its group, its pictures in that group
Form = Literal["pairs", "soft", "rankings", "unary"]


@dataclass(frozen=True)
class Making:
    """How rows are made.

    ``pairs``: best against worst of a prompt, or all pairs. ``min_margin``: a pair, or a ranking's best and worst, must
    be further apart than this in the score that orders them (psi for several rewards, else the score).
    ``temperatures``: of soft labels, one per reward in their order (none: 1 each): p = mean over rewards
    of sigma(score difference / T).
    ``above`` / ``below``: unary rows are desirable from the first score on, undesirable up to the second, left out
    between. ``share`` instead: the best and the worst share of all pictures.
    """

    form: Form
    pairs: Literal["best_vs_worst", "all"] = "best_vs_worst"
    min_margin: float = 0.0
    temperatures: tuple[float, ...] = ()
    above: float | None = None
    below: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Made:
    """``rows`` as they will be, but with pictures that are only named (see :class:`LabelledRows`); ``places``: group
    and pictures of each row; ``notes``: what was left out and why."""

    rows: list[Row]
    places: list[tuple[int, tuple[int, ...]]]
    notes: list[str]


@dataclass(frozen=True)
class _Scored:
    """A prompt's pictures, their scores [rewards, k], and the one number per picture that orders them."""

    number: int
    group: Candidates
    columns: Array
    order: Array


def make_rows(
    groups: Iterable[Candidates], scored: Iterable[ScoredRow], rewards: Mapping[str, str], making: Making
) -> Made:
    """Rows of ``making.form``. ``rewards``: name -> version, which go into every row's ``extras`` with the scores.

    Equal pictures in the order that counts are no pair, whatever ``min_margin``. ValueError where nothing is left.
    """
    ready, broken, alone = [], [], 0
    for number, (group, one) in enumerate(zip(groups, scored, strict=True)):
        if one.problem is not None:
            broken.append((group.sample_id, one.problem))
        elif len(group.images) < 2 and making.form != "unary":
            alone += 1
        else:
            columns = np.array([one.scores[name] for name in rewards], dtype=np.float64)
            ready.append(_Scored(number, _named_only(group), columns, _order(columns, making)))
    notes = [f"{count(len(broken), 'prompt')} left out, as pictures cannot be read: {named(broken)}."] if broken else []
    if alone:
        notes.append(f"{count(alone, 'prompt')} with a single picture left out: nothing to compare it with.")
    maker = {"pairs": _pairs, "soft": _pairs, "rankings": _rankings, "unary": _unary}[making.form]
    made, left_out = maker(ready, rewards, making)
    notes += left_out
    if not made:
        raise ValueError("no row is left: " + " ".join(notes or ["nothing was given"]))
    return Made([row for row, _, _ in made], [(number, places) for _, number, places in made], notes)


class LabelledRows:
    """Storage of a labelled table: labels in memory, pictures read from their groups when a row is asked for."""

    def __init__(self, groups: Sequence[Candidates], made: Made) -> None:
        self.groups, self.made = groups, made

    def __len__(self) -> int:
        return len(self.made.rows)

    def __getitem__(self, position: int) -> Row:
        row, (number, places) = self.made.rows[position], self.made.places[position]
        images = self.groups[number].images
        pictures = tuple(images[place] for place in places)
        if isinstance(row, PreferencePair):
            return replace(row, chosen=pictures[0], rejected=pictures[1])
        return replace(row, candidates=pictures) if isinstance(row, Ranking) else replace(row, image=pictures[0])

    @property
    def prompts(self) -> list[str]:
        """Prompt of every row."""
        return [row.prompt for row in self.made.rows]

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of every row."""
        return [row.sample_id for row in self.made.rows]

    @property
    def blocks(self) -> list[int]:
        """Number of the group that each row comes from."""
        return [number for number, _ in self.made.places]


def _named_only(group: Candidates) -> Candidates:
    """Without the bytes of its pictures: a million rows are held at once."""
    images = tuple(image if image.data is None else ImageBytes(image.origin, path=Path()) for image in group.images)
    return replace(group, images=images)


def _order(columns: Array, making: Making) -> Array:
    return columns[0] if len(columns) == 1 or making.form == "unary" else win_probability(columns)


def _pairs(ready: Sequence[_Scored], rewards: Mapping[str, str], making: Making) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    close = 0
    for one in ready:
        for better, worse in _chosen_pairs(one, making):
            margin = float(one.order[better] - one.order[worse])
            if margin <= making.min_margin:
                close += 1
                continue
            rows.append(_pair(one, better, worse, margin, rewards, making))
    what = "pair" if making.pairs == "all" else "prompt"
    rule = f"no more than {making.min_margin:g} apart" if making.min_margin else "with equal scores"
    return rows, [f"{count(close, what)} {rule} left out."] if close else []


def _chosen_pairs(one: _Scored, making: Making) -> Iterator[tuple[int, int]]:
    if making.pairs == "best_vs_worst":
        yield int(one.order.argmax()), int(one.order.argmin())
        return
    k = len(one.order)
    for first in range(k):
        for second in range(first + 1, k):
            yield (first, second) if one.order[first] >= one.order[second] else (second, first)


def _pair(one: _Scored, better: int, worse: int, margin: float, rewards: Mapping[str, str], making: Making) -> _Row:
    group, preference = one.group, 1.0
    if making.form == "soft":
        gaps = (one.columns[:, better] - one.columns[:, worse]) / np.array(making.temperatures or 1.0)
        preference = float((0.5 * (1 + np.tanh(gaps / 2))).mean())
        # The mean of probabilities may favour the side that wins fewer rewards: then that side is the chosen one.
        if preference < 0.5:
            better, worse, margin, preference = worse, better, -margin, 1 - preference
    name = group.sample_id if making.pairs == "best_vs_worst" else f"{group.sample_id}:{better}>{worse}"
    extras = {**group.extras, **_provenance(one, (better, worse), rewards)}
    row = PreferencePair(
        name, group.prompt, group.images[better], group.images[worse], preference, margin, group.user_id, extras
    )
    return row, one.number, (better, worse)


def _rankings(ready: Sequence[_Scored], rewards: Mapping[str, str], making: Making) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    close = 0
    for one in ready:
        if float(np.ptp(one.order)) <= making.min_margin:
            close += 1
            continue
        group, everything = one.group, tuple(range(len(one.order)))
        extras = {**group.extras, **_provenance(one, everything, rewards)}
        labels = tuple(one.order.tolist())
        row = Ranking(group.sample_id, group.prompt, group.images, labels, group.user_id, extras)
        rows.append((row, one.number, everything))
    rule = f"no more than {making.min_margin:g} apart" if making.min_margin else "with equal scores"
    return rows, [f"{count(close, 'prompt')} whose best and worst picture are {rule} left out."] if close else []


def _unary(ready: Sequence[_Scored], rewards: Mapping[str, str], making: Making) -> tuple[list[_Row], list[str]]:
    if len(rewards) != 1:
        raise ValueError(
            f"unary rows are labelled by one reward's own scale, and {len(rewards)} are given; combine them in "
            "a YAML file"
        )
    above, below = _thresholds(ready, making)
    rows: list[_Row] = []
    between = 0
    for one in ready:
        for place, score in enumerate(one.order.tolist()):
            if below < score < above:
                between += 1
                continue
            group = one.group
            extras = {**group.extras, **_provenance(one, (place,), rewards)}
            name, desirable = f"{group.sample_id}:{place}", score >= above
            row = Unary(name, group.prompt, group.images[place], desirable, group.user_id, extras)
            rows.append((row, one.number, (place,)))
    told = f"{count(between, 'picture')} between {below:g} and {above:g} left out."
    return rows, [told] if between else []


def _thresholds(ready: Sequence[_Scored], making: Making) -> tuple[float, float]:
    if making.share is None:
        assert making.above is not None
        below = making.above if making.below is None else making.below
        if below > making.above:
            raise ValueError(f"undesirable up to {below:g} and desirable from {making.above:g} overlap")
        return making.above, below
    scores = np.concatenate([one.order for one in ready]) if ready else np.zeros(0)
    if not scores.size:
        return np.inf, -np.inf
    below, above = np.quantile(scores, [making.share, 1 - making.share])
    if below >= above:
        raise ValueError(
            f"the best and the worst {making.share:g} of all pictures meet at the score {above:g}; give a smaller share"
        )
    return float(above), float(below)


def _provenance(one: _Scored, places: Iterable[int], rewards: Mapping[str, str]) -> dict[str, Any]:
    """Rewards, versions, scores and makers of the row's pictures, in the row's order."""
    places = list(places)
    return {
        "rewards": dict(rewards),
        "scores": {name: one.columns[row, places].tolist() for row, name in enumerate(rewards)},
        "made_by": [dict(one.group.made_by[place]) for place in places],
    }
