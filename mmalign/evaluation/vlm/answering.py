"""Asking a model every question of a benchmark, kept in a file line by line, so that an interrupted run goes on."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mmalign.evaluation.vlm.records import Question

Ask = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""Pictures and questions, one each -> answers."""


class AnswerFile:
    """Answers as JSONL (``split``, ``question_id``, ``image``, ``question``, ``answer``), with what they depend on in
    ``NAME.settings.json`` beside them.

    A file of the same settings is continued; half a line at its end, left by a killed run, is cut off and answered
    again. ValueError where the file is there with other settings, which the message names.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.settings_file = path.with_suffix(".settings.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._check_settings()
            self._cut_half_line()
        else:
            write_whole(self.settings_file, json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n")
        self.answers = {_key(record): record for record in self._read()}

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """Questions without an answer; ValueError where the file answers another question of the same id."""
        missing = []
        for question in questions:
            record = self.answers.get((question.split, question.key))
            if record is None:
                missing.append(question)
            elif (record["image"], record["question"]) != (question.image, question.text):
                raise ValueError(
                    f"{self.path}: question {question.key} was {record['question']!r} about {record['image']} there "
                    f"and is {question.text!r} about {question.image} now; name a new --out"
                )
        return missing

    def add(self, questions: Sequence[Question], texts: Sequence[str]) -> None:
        """Write answers; they are on the disk when this returns."""
        records = [
            {"split": one.split, "question_id": one.key, "image": one.image, "question": one.text, "answer": text}
            for one, text in zip(questions, texts, strict=True)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        self.answers |= {_key(record): record for record in records}

    def texts(self, questions: Sequence[Question]) -> list[str]:
        """The answer to each question."""
        return [self.answers[question.split, question.key]["answer"] for question in questions]

    def _check_settings(self) -> None:
        if not self.settings_file.is_file():
            raise ValueError(f"{self.path} is there without {self.settings_file.name}; name a new --out")
        there = json.loads(self.settings_file.read_text(encoding="utf-8"))
        changed = [name for name in sorted({*there, *self.settings}) if there.get(name) != self.settings.get(name)]
        if changed:
            told = "; ".join(f"{name} was {there.get(name)!r}, is {self.settings.get(name)!r}" for name in changed)
            raise ValueError(f"{self.path} holds answers that were made otherwise ({told}); name a new --out")

    def _cut_half_line(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}:{number}: not JSON ({error}); name a new --out") from error
        return records


def answer_questions(
    questions: Sequence[Question],
    images: Path,
    file: AnswerFile,
    ask: Ask,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answers to all questions, in their order; those in ``file`` are not asked again.

    A question that stands in several splits is asked once: greedy answers do not change. ``progress`` is called with
    the number of questions that got an answer.
    """
    waiting: dict[tuple[str, str], list[Question]] = {}
    known = {(record["image"], record["question"]): record["answer"] for record in file.answers.values()}
    missing = file.missing(questions)
    if progress is not None:
        progress(len(questions) - len(missing))
    for question in missing:
        waiting.setdefault((question.image, question.text), []).append(question)
    again = [(one, known[key]) for key, group in waiting.items() if key in known for one in group]
    if again:
        file.add([one for one, _ in again], [text for _, text in again])
        if progress is not None:
            progress(len(again))
    groups = [group for key, group in waiting.items() if key not in known]
    for start in range(0, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        pictures = [open_picture(images / group[0].image) for group in batch]
        texts = ask(pictures, [group[0].text for group in batch])
        file.add(
            [one for group in batch for one in group],
            [text for group, text in zip(batch, texts, strict=True) for _ in group],
        )
        if progress is not None:
            progress(sum(len(group) for group in batch))
    return file.texts(questions)


def check_pictures(questions: Sequence[Question], images: Path) -> None:
    """ValueError where files of pictures are missing: better before a model is loaded."""
    names = list(dict.fromkeys(question.image for question in questions))
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise ValueError(
            f"{images}: {len(missing)} of {len(names)} pictures are not there, such as {missing[0]}; give the folder "
            "that holds them with --images"
        )


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB; ValueError that names the file where it is none."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["split"], record["question_id"]


def write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
