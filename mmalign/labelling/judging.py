"""Rows that people judged, with a reward model's scores beside them: what a reward's accuracy is measured on."""

from collections.abc import Iterable, Mapping, Sequence

from mmalign.data import RowTable
from mmalign.data.table import count, named
from mmalign.evaluation.judged import Judged
from mmalign.evaluation.probes import rated_dimensions
from mmalign.labelling.scoring import ScoredRow
from mmalign.types import PreferencePair, Ranking, Row, Unary


def judged_rows(table: RowTable, scored: Iterable[ScoredRow], reward: str) -> tuple[list[Judged], list[str]]:
    """Groups of ``table``'s rows with their scores by ``reward``, and notes on what was left out.

    A pair keeps the order its data has (image 0 before image 1), for some rules let the first of two tied pictures win.
    Unary rows of one prompt make a group (desirable 1, undesirable 0), where there are at least two of them.
    ValueError where nothing can be compared.
    """
    groups: list[Judged] = []
    broken: list[tuple[str, str]] = []
    single: dict[str, list[tuple[Unary, ScoredRow]]] = {}
    for row, scores in zip(table, scored, strict=True):
        if scores.problem is not None:
            broken.append((row.sample_id, scores.problem))
        elif isinstance(row, Unary):
            single.setdefault(row.prompt, []).append((row, scores))
        else:
            groups.append(_judged(row, scores, reward))
    notes = [f"{count(len(broken), 'row')} left out, as pictures cannot be read: {named(broken)}."] if broken else []
    alone = 0
    for prompt, members in single.items():
        if len(members) < 2:
            alone += 1
            continue
        labels = [float(row.desirable) for row, _ in members]
        dimensions = _joined([scores.statistics for _, scores in members])
        of_pictures = [scores.scores[reward][0] for _, scores in members]
        groups.append(Judged(prompt, labels, of_pictures, None, dimensions, members[0][0].sample_id))
    if alone:
        notes.append(f"{count(alone, 'prompt')} with one picture left out: there is nothing to compare it with.")
    if not groups:
        raise ValueError("nothing is left to compare: " + (" ".join(notes) or "the data has no rows"))
    return groups, notes


def _judged(row: Row, scored: ScoredRow, reward: str) -> Judged:
    scores, statistics = list(scored.scores[reward]), scored.statistics
    if isinstance(row, Ranking):
        rated = rated_dimensions(row.extras, len(row.candidates))
        return Judged(row.prompt, row.labels, scores, None, {**rated, **statistics}, row.sample_id)
    if not isinstance(row, PreferencePair):
        raise ValueError(f"{row.sample_id}: a {type(row).__name__} holds no pictures that people compared")
    labels, preference = ([0.0, 0.0] if row.is_tie else [1.0, 0.0]), row.preference
    if row.extras.get("swapped"):
        labels, scores, preference = labels[::-1], scores[::-1], 1 - preference
        statistics = {name: values[::-1] for name, values in statistics.items()}
    return Judged(row.prompt, labels, scores, preference, statistics, row.sample_id)


def _joined(each: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    return {name: [values[name][0] for values in each] for name in each[0]} if each else {}
