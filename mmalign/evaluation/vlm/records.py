"""Questions and answers in the layouts of the official files: JSON arrays, or a JSON object per line."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DESCRIBE = "Please describe this image in detail."
NOT_RECORDED = "(the prompt is not recorded)"
_ID = ("question_id", "id", "image_id")
_QUESTION = ("query", "text", "question", "prompt")
_ANSWER = ("answer", "response", "caption", "text")
_ASKED = ("question", "prompt", "query")


@dataclass(frozen=True)
class Question:
    """``key`` is unique among the questions of its ``split``; ``label`` is what the file says is right, if it does."""

    key: str
    image: str
    text: str
    split: str = ""
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said. ``key``, ``split`` and ``question`` are None where the file does not say them."""

    text: str
    where: str
    key: str | None = None
    split: str | None = None
    question: str | None = None


def read_json_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(``file:line`` or ``file[item]``, object) of a file that holds one JSON array of objects, or an object per line.

    The name's ending does not matter: POPE's ``.json`` files hold an object per line. The official CHAIR script's
    captions, an object with ``imgToEval``, give its values. ValueError, naming file and line, for anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    if not text:
        raise ValueError(f"{path}: the file is empty")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith("["):
            raise ValueError(f"{path}: not JSON ({error})") from error
        return _objects([(f"{path}:{number}", line) for number, line in _parsed_lines(path, text)])
    if isinstance(whole, dict) and isinstance(whole.get("imgToEval"), dict):
        whole = list(whole["imgToEval"].values())
    items = whole if isinstance(whole, list) else [whole]
    return _objects([(f"{path}[{number}]", item) for number, item in enumerate(items)])


def _parsed_lines(path: Path, text: str) -> list[tuple[int, Any]]:
    parsed = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be one object") from error
    return parsed


def _objects(items: Sequence[tuple[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    for where, item in items:
        if not isinstance(item, dict):
            raise ValueError(f"{where}: holds a {type(item).__name__}, not an object with fields")
    if not items:
        raise ValueError("the file holds no record")
    return list(items)


def read_questions(path: Path, *, split: str = "", describe: bool = False, labels: bool = False) -> list[Question]:
    """Questions of a file. ``describe``: one without a text asks for a description; ``labels``: each needs yes or no.

    Fields: ``image`` (or a COCO ``image_id``), ``text`` / ``question`` / ``query`` / ``prompt``, ``question_id`` /
    ``id`` (else the number of the record), ``label``.
    """
    questions = []
    for number, (where, record) in enumerate(read_json_records(path)):
        text = _first(record, _QUESTION, where)
        key = _first(record, _ID, where)
        image = record.get("image")
        if image is None and record.get("image_id") is not None:
            image = f"COCO_val2014_{coco_id(record['image_id'], where):012d}.jpg"
        if not isinstance(image, str):
            raise ValueError(f"{where}: a question needs the field image, the name of its picture's file")
        if text is None and not describe:
            raise ValueError(f"{where}: a question needs one of the fields {', '.join(_QUESTION)}")
        label = record.get("label")
        if labels and str(label).lower() not in ("yes", "no"):
            raise ValueError(f"{where}: label must be yes or no, got {label!r}")
        label = None if label is None else str(label).lower()
        questions.append(Question(str(number) if key is None else key, image, text or DESCRIBE, split, label))
    _refuse_repeats([question.key for question in questions], path)
    return questions


def questions_of_captions(path: Path) -> list[Question]:
    """A question for every caption with an ``image_id``, for captions without a file of questions."""
    questions = []
    for where, record in read_json_records(path):
        if record.get("image_id") is None:
            raise ValueError(f"{where}: has no image_id, so give the file of the questions with --questions")
        image = coco_id(record["image_id"], where)
        questions.append(Question(str(image), f"COCO_val2014_{image:012d}.jpg", NOT_RECORDED))
    _refuse_repeats([question.key for question in questions], path)
    return questions


def read_answers(path: Path) -> list[Answer]:
    """Answers of a file: ``answer`` / ``response`` / ``caption`` / ``text``, with ``question_id`` / ``id`` /
    ``image_id``, ``split`` and ``question`` where they are there."""
    answers = []
    for where, record in read_json_records(path):
        text = _first(record, _ANSWER, where)
        if text is None:
            raise ValueError(f"{where}: an answer needs one of the fields {', '.join(_ANSWER)}")
        split = record.get("split")
        answers.append(Answer(text, where, _first(record, _ID, where), split, _first(record, _ASKED, where)))
    return answers


def answers_to(questions: Sequence[Question], answers: Sequence[Answer], path: Path) -> list[str]:
    """The text of the answer to each question, in the questions' order.

    By id where every answer has one (and by split where it says one), else by order, as POPE's script takes them.
    ValueError for missing, unknown and repeated ids, another number of answers, and answers to other questions.
    """
    split = questions[0].split
    if any(answer.split is not None for answer in answers):
        answers = [answer for answer in answers if answer.split == split]
        if not answers:
            raise ValueError(f"{path}: no answer is of the split {split!r}")
    if all(answer.key is not None for answer in answers):
        _refuse_repeats([str(answer.key) for answer in answers], path)
        by_key = {answer.key: answer for answer in answers}
        keys = _keys(questions, by_key)
        missing = [key for key in keys if key not in by_key]
        unknown = sorted(set(by_key) - set(keys), key=str)
        if missing or unknown:
            told = [f"{len(missing)} questions have none, such as {missing[0]}"] if missing else []
            told += [f"{len(unknown)} answers are to no question, such as {unknown[0]}"] if unknown else []
            raise ValueError(f"{path}: the answers are not to these questions: {'; '.join(told)}")
        ordered = [by_key[key] for key in keys]
    elif len(answers) != len(questions):
        raise ValueError(
            f"{path}: {len(answers)} answers without ids for {len(questions)} questions; they are taken in order, so "
            "there must be one of each"
        )
    else:
        ordered = list(answers)
    for question, answer in zip(questions, ordered, strict=True):
        if answer.question is not None and not _same_question(question.text, answer.question):
            raise ValueError(f"{answer.where}: answers {answer.question!r}, and the question is {question.text!r}")
    return [answer.text for answer in ordered]


def _keys(questions: Sequence[Question], given: Collection[str | None]) -> list[str]:
    """Ids of the questions; or of their pictures in COCO, where the answers are to exactly those."""
    numbers = [re.fullmatch(r"COCO_\w+_0*(\d+)\.\w+", question.image) for question in questions]
    images = [number[1] for number in numbers if number]
    if len(images) == len(set(images)) == len(questions) and set(images) == {str(key) for key in given}:
        return images
    return [question.key for question in questions]


def coco_id(name: object, where: str) -> int:
    """310196 of 310196, of ``"310196"`` and of ``COCO_val2014_000000310196.jpg``."""
    found = re.fullmatch(r"(?:.*[_/\\])?(\d+)(?:\.\w+)?", str(name))
    if not found:
        raise ValueError(f"{where}: {name!r} holds no COCO image id, such as COCO_val2014_000000310196.jpg does")
    return int(found[1])


def _first(record: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    for name in names:
        value = record.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{where}: the field {name} holds {value!r}, not a text")
        return str(value)
    return None


def _refuse_repeats(keys: Sequence[str], path: Path) -> None:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: the id {repeated[0]} is there more than once ({len(repeated)} ids are)")


def _same_question(asked: str, answered: str) -> bool:
    """Alike but for case, spaces, and what one of them has behind it, such as a request to answer with one word."""
    first, second = (" ".join(text.lower().split()) for text in (asked, answered))
    return first.startswith(second) or second.startswith(first)
