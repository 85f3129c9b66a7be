"""POPE (arXiv 2305.10355): is an object in the picture, yes or no, with absent objects chosen in three ways.

Official rules as in RUCAIBox/POPE, ``evaluate.py``: the answer is read by lines 10-21, yes is the positive class (line
35), precision, recall, F1 and accuracy by lines 54-57, yes ratio by line 38. The script stops with a division by zero
where a model never says yes; here precision is then not defined. Splits are measured apart, and averaged unweighted.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmalign.evaluation.vlm.measures import (
    Array,
    Counts,
    Measure,
    MeasureGroup,
    Tally,
    TallyBuilder,
    compare_tallies,
    harmonic_mean,
    ratio,
)
from mmalign.evaluation.vlm.records import Question, read_questions
from mmalign.evaluation.vlm.result import Example, VLMEvaluation, choose_examples
from mmalign.evaluation.vlm.yes_no import POPE_READERS, Reading, Rules

SPLITS = ("random", "popular", "adversarial")
MEAN = "mean of splits"
RULES: tuple[Rules, ...] = ("official", "strict")


def read_pope(paths: Sequence[Path]) -> dict[str, list[Question]]:
    """Split -> questions, of files in the layout of ``coco_pope_random.json``, or a folder with such files.

    The split is the last word of the file's name where it is random, popular or adversarial, else the whole name.
    """
    files = [file for path in paths for file in (sorted(path.glob("*_pope_*.json")) if path.is_dir() else [path])]
    if not files:
        raise ValueError(
            f"{', '.join(map(str, paths)) or 'no file given'}: no POPE questions. Download coco_pope_random.json, "
            "coco_pope_popular.json and coco_pope_adversarial.json from output/coco of the repository RUCAIBox/POPE on "
            "GitHub, and give the files or their folder; the pictures are val2014.zip of cocodataset.org"
        )
    splits: dict[str, list[Question]] = {}
    for file in files:
        last = file.stem.rsplit("_", 1)[-1]
        split = last if last in SPLITS else file.stem
        if split in splits:
            raise ValueError(f"{file}: there are two files of the split {split!r}; give each split once")
        splits[split] = read_questions(file, split=split, labels=True)
    order = {split: index for index, split in enumerate(SPLITS)}
    return dict(sorted(splits.items(), key=lambda item: order.get(item[0], len(order))))


def evaluate_pope(
    splits: Mapping[str, Sequence[Question]],
    base: Mapping[str, Sequence[str]],
    aligned: Mapping[str, Sequence[str]],
    *,
    rules: Sequence[Rules] = RULES,
    names: tuple[str, str] = ("base", "aligned"),
    settings: Mapping[str, str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> VLMEvaluation:
    """Both models' answers, split -> texts in the order of its questions, under each of ``rules``."""
    sections, examples = [], []
    for rule in rules:
        tallies = [_tally(splits, answers, rule) for answers in (base, aligned)]
        groups = _groups(list(splits), rule)
        sections += compare_tallies(tallies[0], tallies[1], groups, bootstrap=bootstrap, seed=seed)
    for split, questions in splits.items():
        examples += _examples(questions, base[split], aligned[split], POPE_READERS[rules[0]])
    notes = [
        f"{side}: {len(unread)} answers say neither yes nor no (or both), such as {unread[0]!r}; the official rules "
        "count them as yes unless a no stands in them, the strict rules as wrong."
        for side, answers in zip(names, (base, aligned), strict=True)
        if (unread := [text for texts in answers.values() for text in texts if POPE_READERS["strict"](text) is None])
    ]
    return VLMEvaluation(
        benchmark="POPE",
        base=names[0],
        aligned=names[1],
        n_pictures=len({question.image for questions in splits.values() for question in questions}),
        n_questions=sum(len(questions) for questions in splits.values()),
        sections=sections,
        settings=dict(settings or {}),
        notes=notes,
        examples=choose_examples(examples),
        bootstrap=bootstrap,
        seed=seed,
    )


def _tally(splits: Mapping[str, Sequence[Question]], answers: Mapping[str, Sequence[str]], rule: Rules) -> Tally:
    """Counts named ``random/yes/no``: split, what was said (yes, no, None), what is right; and words."""
    pictures = [question.image for questions in splits.values() for question in questions]
    names = [f"{split}/{said}/{label}" for split in splits for said in ("yes", "no", None) for label in ("yes", "no")]
    builder = TallyBuilder(pictures, [*names, *(f"{split}/words" for split in splits)])
    for split, questions in splits.items():
        for question, text in zip(questions, answers[split], strict=True):
            builder.add(question.image, f"{split}/{POPE_READERS[rule](text)}/{question.label}")
            builder.add(question.image, f"{split}/words", len(text.split()))
    return builder.tally()


def _groups(splits: Sequence[str], rule: Rules) -> list[MeasureGroup]:
    groups = [MeasureGroup(split, rule, _measures([split], rule)) for split in splits]
    return [*groups, MeasureGroup(MEAN, rule, _measures(splits, rule))] if len(splits) > 1 else groups


def _measures(splits: Sequence[str], rule: Rules) -> tuple[Measure, ...]:
    """Measures of one split, or their means over several."""

    def over(of_split: Callable[[Counts, str], Array]) -> Callable[[Counts], Array]:
        return lambda counts: np.mean([of_split(counts, split) for split in splits], axis=0)

    measures = [
        Measure("accuracy", over(_accuracy), "higher"),
        Measure("precision", over(_precision), "higher"),
        Measure("recall", over(_recall), "higher"),
        Measure("F1", over(_f1), "higher"),
        Measure("yes ratio", over(_yes_ratio)),
        Measure("words per answer", over(_words), unit="number"),
    ]  # fmt: skip
    if rule == "strict":
        measures.insert(5, Measure("neither yes nor no", over(_unread), "lower"))
    return tuple(measures)


def _said(counts: Counts, split: str, said: Reading) -> Array:
    return counts[f"{split}/{said}/yes"] + counts[f"{split}/{said}/no"]


def _all(counts: Counts, split: str) -> Array:
    return _said(counts, split, "yes") + _said(counts, split, "no") + _said(counts, split, None)


def _accuracy(counts: Counts, split: str) -> Array:
    return ratio(counts[f"{split}/yes/yes"] + counts[f"{split}/no/no"], _all(counts, split))


def _precision(counts: Counts, split: str) -> Array:
    return ratio(counts[f"{split}/yes/yes"], _said(counts, split, "yes"))


def _recall(counts: Counts, split: str) -> Array:
    true = sum(counts[f"{split}/{said}/yes"] for said in ("yes", "no", None))
    return ratio(counts[f"{split}/yes/yes"], np.asarray(true))


def _f1(counts: Counts, split: str) -> Array:
    return harmonic_mean(_precision(counts, split), _recall(counts, split))


def _yes_ratio(counts: Counts, split: str) -> Array:
    return ratio(_said(counts, split, "yes"), _all(counts, split))


def _unread(counts: Counts, split: str) -> Array:
    return ratio(_said(counts, split, None), _all(counts, split))


def _words(counts: Counts, split: str) -> Array:
    return ratio(counts[f"{split}/words"], _all(counts, split))


def _examples(
    questions: Sequence[Question], base: Sequence[str], aligned: Sequence[str], read: Callable[[str], Reading]
) -> list[Example]:
    found = []
    for question, *said in zip(questions, base, aligned, strict=True):
        right = [read(text) == question.label for text in said]
        if right[0] != right[1]:
            verdicts = ["right" if one else "wrong" for one in right]
            found.append(
                Example(question.text, question.image, str(question.label), *said, *verdicts, gain=right[1] - right[0])
            )
    return found
