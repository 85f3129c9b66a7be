"""AMBER's questions to be answered with yes or no; the positive class is No.

Official rules (junyangwang0410/AMBER, ``inference.py:173-256,269-338``): only the answers ``Yes`` and ``No``, exactly,
are read; precision = right No / No said, recall = right No / no is right, each rounded to 0.1 per cent before F1 =
2 P R / (P + R + .0001), with .001 for existence (line 284). Every denominator starts at .001. Strict rules read answers
as :func:`mmalign.evaluation.vlm.yes_no.strict` does and neither round nor add anything.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmalign.evaluation.vlm.amber_files import AmberTruth
from mmalign.evaluation.vlm.measures import Array, Counts, Measure, MeasureGroup, harmonic_mean, ratio
from mmalign.evaluation.vlm.records import Question
from mmalign.evaluation.vlm.yes_no import AMBER_READERS, Rules

EPSILON = 0.001
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "all": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""Parts that are reported, and the kinds of questions in each."""
KINDS = DIMENSIONS["all"]
COUNTS = (
    *(f"{kind}/{said}/{label}" for kind in KINDS for said in ("yes", "no", None) for label in ("yes", "no")),
    *(f"{kind}/words" for kind in KINDS),
)


def counts_of(truth: AmberTruth, text: str, rules: Rules) -> dict[str, float]:
    """What one answer adds."""
    said = AMBER_READERS[rules](text)
    return {f"{truth.kind}/{said}/{truth.label}": 1, f"{truth.kind}/words": len(text.split())}


def groups(truths: Sequence[AmberTruth], rules: Rules) -> list[MeasureGroup]:
    """A group for every part of which there are questions."""
    asked = {truth.kind for truth in truths if not truth.is_generative}
    parts = [part for part, kinds in DIMENSIONS.items() if asked & set(kinds)]
    return [MeasureGroup(f"questions, {part}", rules, _measures(part, rules)) for part in parts]


def unread_notes(
    questions: Sequence[Question], truths: Sequence[AmberTruth], answers: Mapping[str, Sequence[str]]
) -> list[str]:
    """How many answers the official rules cannot read, which count as wrong."""
    notes = []
    for model, texts in answers.items():
        unread = [
            text
            for _, truth, text in zip(questions, truths, texts, strict=True)
            if not truth.is_generative and AMBER_READERS["official"](text) is None
        ]
        if unread:
            notes.append(
                f"{model}: {len(unread)} answers are not exactly Yes or No, such as {unread[0]!r:.80}, and wrong by "
                "the official rules. The strict rules read them where they can."
            )
    return notes


def f1_of(counts: Counts, part: str) -> Array:
    """F1 without rounding, with the official epsilons, for intervals."""
    precision, recall = _precision(counts, part, EPSILON), _recall(counts, part, EPSILON)
    return ratio(2 * precision * recall, precision + recall + _f1_epsilon(part))


def official_f1(counts: Mapping[str, float], part: str) -> float:
    """F1 in per cent, rounded as the script does on the way."""
    arrays = {name: np.asarray(value) for name, value in counts.items()}
    precision = percent(float(_precision(arrays, part, EPSILON))) / 100
    recall = percent(float(_recall(arrays, part, EPSILON))) / 100
    return percent(2 * precision * recall / (precision + recall + _f1_epsilon(part)))


def percent(share: float) -> float:
    """In per cent, to one decimal."""
    return round(share * 100, 1)


def _f1_epsilon(part: str) -> float:
    return 0.001 if part == "existence" else 0.0001


def _measures(part: str, rules: Rules) -> tuple[Measure, ...]:
    extra = (
        Measure("yes ratio", lambda counts: ratio(_said(counts, part, "yes"), _all(counts, part))),
        Measure("neither yes nor no", lambda counts: ratio(_said(counts, part, None), _all(counts, part)), "lower"),
        Measure("words per answer", lambda counts: ratio(_words(counts, part), _all(counts, part)), unit="number"),
    )
    if rules == "strict":
        return (
            Measure("accuracy", lambda counts: _accuracy(counts, part, 0), "higher"),
            Measure("precision of No", lambda counts: _precision(counts, part, 0), "higher"),
            Measure("recall of No", lambda counts: _recall(counts, part, 0), "higher"),
            Measure(
                "F1", lambda counts: harmonic_mean(_precision(counts, part, 0), _recall(counts, part, 0)), "higher"
            ),
            *extra,
        )
    rounded = {"accuracy": _accuracy, "precision of No": _precision, "recall of No": _recall}
    measures = [
        Measure(
            name,
            lambda counts, share=share: share(counts, part, EPSILON),
            "higher",
            point=lambda counts, share=share: percent(float(share(_arrays(counts), part, EPSILON))) / 100,
        )
        for name, share in rounded.items()
    ]
    f1 = Measure(
        "F1", lambda counts: f1_of(counts, part), "higher", point=lambda counts: official_f1(counts, part) / 100
    )
    return (*measures, f1, *extra)


def _arrays(counts: Mapping[str, float]) -> Counts:
    return {name: np.asarray(value) for name, value in counts.items()}


def _sum(counts: Counts, part: str, said: str | None, label: str) -> Array:
    return np.asarray(sum(counts[f"{kind}/{said}/{label}"] for kind in DIMENSIONS[part]))


def _said(counts: Counts, part: str, said: str | None) -> Array:
    return _sum(counts, part, said, "yes") + _sum(counts, part, said, "no")


def _all(counts: Counts, part: str) -> Array:
    return _said(counts, part, "yes") + _said(counts, part, "no") + _said(counts, part, None)


def _words(counts: Counts, part: str) -> Array:
    return np.asarray(sum(counts[f"{kind}/words"] for kind in DIMENSIONS[part]))


def _accuracy(counts: Counts, part: str, epsilon: float) -> Array:
    right = _sum(counts, part, "yes", "yes") + _sum(counts, part, "no", "no")
    return ratio(right, _all(counts, part) + epsilon)


def _precision(counts: Counts, part: str, epsilon: float) -> Array:
    return ratio(_sum(counts, part, "no", "no"), _said(counts, part, "no") + epsilon)


def _recall(counts: Counts, part: str, epsilon: float) -> Array:
    false = sum(_sum(counts, part, said, "no") for said in ("yes", "no", None))
    return ratio(_sum(counts, part, "no", "no"), np.asarray(false) + epsilon)
