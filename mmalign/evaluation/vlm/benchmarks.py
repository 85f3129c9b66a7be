"""A benchmark with everything it needs read and checked, ready to judge the answers of two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmalign.evaluation.vlm.amber import evaluate_amber
from mmalign.evaluation.vlm.amber_files import WANTED, read_amber
from mmalign.evaluation.vlm.chair import RULES, chair_judge, evaluate_chair
from mmalign.evaluation.vlm.pope import evaluate_pope, read_pope
from mmalign.evaluation.vlm.records import (
    DESCRIBE,
    Question,
    answers_to,
    questions_of_captions,
    read_answers,
    read_questions,
)
from mmalign.evaluation.vlm.result import VLMEvaluation
from mmalign.evaluation.vlm.text_tools import ToolsName, find_tools

Name = Literal["pope", "chair", "amber"]
Texts = Sequence[str]


@dataclass(frozen=True)
class Benchmark:
    """``splits``: name -> questions (a benchmark without splits has one, ``""``). ``judge``: answers of base and of
    aligned to :attr:`questions`, names of the models, settings, resamples and seed -> the evaluation. ``settings``:
    what the numbers depend on besides the models."""

    splits: Mapping[str, Sequence[Question]]
    judge: Callable[[Texts, Texts, tuple[str, str], Mapping[str, str], int, int], VLMEvaluation]
    settings: Mapping[str, str]

    @property
    def questions(self) -> list[Question]:
        """Questions of all splits."""
        return [question for questions in self.splits.values() for question in questions]

    def evaluate(
        self,
        base: Texts,
        aligned: Texts,
        *,
        names: tuple[str, str] = ("base", "aligned"),
        settings: Mapping[str, str] | None = None,
        bootstrap: int = 2000,
        seed: int = 0,
    ) -> VLMEvaluation:
        """Judge answers in the order of :attr:`questions`."""
        return self.judge(base, aligned, names, {**self.settings, **(settings or {})}, bootstrap, seed)

    def stored(self, files: Sequence[Path]) -> list[str]:
        """Answers that are there already, in the order of :attr:`questions`.

        One file with all answers (which say their ``split`` where there are several), or a file per split with the
        split's name in its own. ValueError where answers and questions do not fit.
        """
        if len(files) == 1 and len(self.splits) > 1:
            answers = read_answers(files[0])
            if any(answer.split is None for answer in answers):
                raise ValueError(
                    f"{files[0]}: the answers do not say which of the splits {', '.join(self.splits)} they are to; "
                    "give a file per split, or answers with the field split"
                )
            by_split = dict.fromkeys(self.splits, (files[0], answers))
            unknown = sorted({str(answer.split) for answer in answers} - set(self.splits))
            if unknown:
                raise ValueError(f"{files[0]}: answers to the split {unknown[0]!r}, of which there are no questions")
        else:
            by_split = {split: (file, read_answers(file)) for split, file in self._files(files).items()}
        return [
            text
            for split, questions in self.splits.items()
            for text in answers_to(questions, by_split[split][1], by_split[split][0])
        ]

    def _files(self, files: Sequence[Path]) -> dict[str, Path]:
        if len(self.splits) == len(files) == 1:
            return {next(iter(self.splits)): files[0]}
        found = {split: [file for file in files if split in file.stem] for split in self.splits}
        wrong = [split for split, matching in found.items() if len(matching) != 1]
        if wrong or len(files) != len(self.splits):
            raise ValueError(
                f"{len(files)} files of answers for {len(self.splits)} splits ({', '.join(self.splits)}): give one "
                "file per split, with the split's name in the file's, so that none is taken for another"
            )
        return {split: matching[0] for split, matching in found.items()}


def pope_benchmark(questions: Sequence[Path], *, suffix: str = "") -> Benchmark:
    """POPE's files, or their folder. ``suffix`` goes behind every question, on a line of its own."""
    splits = {split: [_asked(one, suffix) for one in asked] for split, asked in read_pope(questions).items()}
    lengths = [len(asked) for asked in splits.values()]

    def judge(base, aligned, names, settings, bootstrap, seed) -> VLMEvaluation:
        sides = [_by_split(splits, lengths, texts) for texts in (base, aligned)]
        return evaluate_pope(splits, sides[0], sides[1], names=names, settings=settings, bootstrap=bootstrap, seed=seed)

    return Benchmark(splits, judge, {"behind each question": suffix or "nothing"})


def chair_benchmark(
    questions: Path | None,
    *,
    annotations: Path,
    synonyms: Path | None = None,
    double_words: Path | None = None,
    text_tools: ToolsName = "builtin",
    prompt: str | None = None,
    captions: Path | None = None,
) -> Benchmark:
    """CHAIR on COCO. ``captions`` may stand in for ``questions`` where it names images. ``prompt`` replaces all texts.

    ``synonyms`` is looked for in ``annotations`` where it is not given.
    """
    if questions is not None:
        asked = read_questions(questions, describe=True)
    elif captions is not None:
        asked = questions_of_captions(captions)
    else:
        raise ValueError(f"CHAIR needs --questions: a file with the pictures' names, asked {DESCRIBE!r} by default")
    if prompt is not None:
        asked = [replace(question, text=prompt) for question in asked]
    tools = find_tools(text_tools, vectors=False)
    file = synonyms or annotations / "synonyms.txt"
    judges = [
        chair_judge(annotations, file, asked, tools.tokenize, rules=rules, script=double_words) for rules in RULES
    ]

    def judge(base, aligned, names, settings, bootstrap, seed) -> VLMEvaluation:
        return evaluate_chair(
            judges, asked, base, aligned, names=names, settings=settings, bootstrap=bootstrap, seed=seed
        )

    return Benchmark({"": asked}, judge, {"synonyms": str(file), "text tools": tools.name})


def amber_benchmark(
    questions: Path, *, annotations: Path, text_tools: ToolsName = "nltk", suffix: str = ""
) -> Benchmark:
    """AMBER: ``query_all.json`` or one of the others; ``suffix`` goes behind questions, not requests to describe."""
    if not questions.is_file():
        raise ValueError(f"{questions}: there is no such file. {WANTED}")
    data = read_amber(annotations)
    asked = [
        question if data.truth_of(question.key).is_generative else _asked(question, suffix)
        for question in read_questions(questions)
    ]
    described = any(data.truth_of(question.key).is_generative for question in asked)
    # Questions to be answered with yes or no need no language processing at all.
    tools = find_tools(text_tools if described else "builtin", vectors=True)

    def judge(base, aligned, names, settings, bootstrap, seed) -> VLMEvaluation:
        return evaluate_amber(
            asked, base, aligned, data, tools, names=names, settings=settings, bootstrap=bootstrap, seed=seed
        )

    return Benchmark({"": asked}, judge, {"behind each question": suffix or "nothing"})


def _asked(question: Question, suffix: str) -> Question:
    return replace(question, text=f"{question.text}\n{suffix}") if suffix else question


def _by_split(splits: Mapping[str, Sequence[Question]], lengths: Sequence[int], texts: Texts) -> dict[str, Texts]:
    found, start = {}, 0
    for split, length in zip(splits, lengths, strict=True):
        found[split] = texts[start : start + length]
        start += length
    return found
