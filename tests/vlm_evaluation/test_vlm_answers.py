"""Questions and answers in the official layouts, matched with each other; and answers that survive a killed run."""

import json

import pytest
from PIL import Image

from mmalign.evaluation.vlm.answering import AnswerFile, answer_questions, check_pictures
from mmalign.evaluation.vlm.benchmarks import pope_benchmark
from mmalign.evaluation.vlm.records import (
    DESCRIBE,
    Question,
    answers_to,
    coco_id,
    questions_of_captions,
    read_answers,
    read_questions,
)

QUESTIONS = [Question("1", "a.jpg", "Is there a dog?"), Question("2", "b.jpg", "Is there a cat?")]
LAYOUTS = {
    "pope, in order": '{"question": "is there a dog?", "answer": "A"}\n{"question": "Is there a cat?", "answer": "B"}',
    "llava, by id": '{"question_id": 2, "prompt": "Is there a cat?\\nOne word.", "text": "B"}\n'
    '{"question_id": 1, "text": "A"}',
    "amber": '[{"id": 2, "response": "B"}, {"id": 1, "response": "A"}]',
    "in order without questions": '{"answer": "A"}\n\n{"answer": "B"}\n',
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=list(LAYOUTS))
def test_answers_find_their_questions(tmp_path, text):
    file = tmp_path / "answers.json"
    file.write_text(text)
    assert answers_to(QUESTIONS, read_answers(file), file) == ["A", "B"]


WRONG = {
    '[{"id": 1, "response": "A"}]': "1 questions have none, such as 2",
    '[{"id": 1, "response": "A"}, {"id": 2, "response": "A"}, {"id": 3, "response": "A"}]': "1 answers are to no",
    '[{"id": 1, "response": "A"}, {"id": 1, "response": "B"}]': "the id 1 is there more than once",
    '{"answer": "A"}': "1 answers without ids for 2 questions",
    '{"question": "Is there a cat?", "answer": "A"}\n{"answer": "B"}': r"json:1: answers 'Is there a cat\?'",
    '{"answer": "A"}\n{"answer": ': r"json:2: not JSON",
    '{"answer": 1.5}\n{"answer": "B"}': r"json:1: the field answer holds 1.5",
    '{"said": "A"}\n{"answer": "B"}': r"json:1: an answer needs one of the fields answer, response",
    "[1, 2]": r"json\[0\]: holds a int",
    "": "the file is empty",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_answers_that_do_not_fit_are_an_error(tmp_path, text, message):
    file = tmp_path / "answers.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        answers_to(QUESTIONS, read_answers(file), file)


def test_captions_in_the_layout_of_the_official_chair_script(tmp_path):
    file = tmp_path / "captions.json"
    captions = {"7": {"image_id": 7, "caption": "A dog"}, "9": {"image_id": 9, "caption": "A cat"}}
    file.write_text(json.dumps({"overall": {"CIDEr": 1.0}, "imgToEval": captions}))
    asked = questions_of_captions(file)
    assert [(one.key, one.image) for one in asked] == [
        ("7", "COCO_val2014_000000000007.jpg"),
        ("9", "COCO_val2014_000000000009.jpg"),
    ]
    assert answers_to(asked, read_answers(file), file) == ["A dog", "A cat"]
    # The ids of the captions are those of the pictures, whatever the questions are numbered by.
    numbered = [Question("0", asked[1].image, "?"), Question("1", asked[0].image, "?")]
    assert answers_to(numbered, read_answers(file), file) == ["A cat", "A dog"]


def test_coco_ids():
    assert [coco_id(one, "") for one in (310196, "310196", "COCO_val2014_000000310196.jpg", "000000310196.jpg")] == [
        310196
    ] * 4
    with pytest.raises(ValueError, match=r"line 3: 'dog.jpg' holds no COCO image id"):
        coco_id("dog.jpg", "line 3")


def test_questions_ask_for_a_description_only_where_that_is_meant(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"image": "COCO_val2014_000000000007.jpg"}\n{"image_id": 9, "text": "What is it?"}\n')
    found = read_questions(file, describe=True)
    assert [(one.key, one.image, one.text) for one in found] == [
        ("0", "COCO_val2014_000000000007.jpg", DESCRIBE),
        ("9", "COCO_val2014_000000000009.jpg", "What is it?"),
    ]
    with pytest.raises(ValueError, match=r"jsonl:1: a question needs one of the fields query, text"):
        read_questions(file)


def test_answers_to_several_splits_are_not_mixed_up(tmp_path):
    for split in ("random", "popular"):
        line = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
        (tmp_path / f"coco_pope_{split}.json").write_text(json.dumps(line))
    opened = pope_benchmark([tmp_path])
    files = {}
    for name in ("of_random", "popular_ones", "other"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(json.dumps({"question_id": 1, "answer": name}))
    assert opened.stored([files["popular_ones"], files["of_random"]]) == ["of_random", "popular_ones"]
    with pytest.raises(ValueError, match="give one file per split, with the split's name"):
        opened.stored([files["popular_ones"], files["other"]])
    with pytest.raises(ValueError, match="do not say which of the splits random, popular"):
        opened.stored([files["other"]])
    both = tmp_path / "both.jsonl"
    both.write_text("".join(json.dumps({"question_id": 1, "split": s, "answer": s}) + "\n" for s in opened.splits))
    assert opened.stored([both]) == ["random", "popular"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def ask_of(asked):
    def ask(pictures, texts):
        assert all(picture.size == (8, 8) for picture in pictures)
        asked.extend(texts)
        return [f"about {text}" for text in texts]

    return ask


def test_a_killed_run_goes_on_where_it_was(tmp_path, images):
    questions = [*QUESTIONS, Question("3", "a.jpg", "Is there a bus?"), Question("1", "a.jpg", "Is there a dog?", "b")]
    path, settings = tmp_path / "answers" / "base.jsonl", {"model": "x"}
    asked = []
    with pytest.raises(KeyboardInterrupt):
        answer_questions(
            questions, images, AnswerFile(path, settings), _killed_after(ask_of(asked), batches=2), batch_size=1
        )
    with path.open("a", encoding="utf-8") as file:
        file.write('{"split": "", "question_id": "3", "ans')  # the kill came amid a line
    # The dog is asked about in two splits, and once of the model.
    assert asked == ["Is there a dog?", "Is there a cat?"]
    asked, done = [], []
    answers = answer_questions(
        questions, images, AnswerFile(path, settings), ask_of(asked), batch_size=4, progress=done.append
    )
    assert asked == ["Is there a bus?"]
    assert answers == [f"about {question.text}" for question in questions]
    assert sum(done) == len(questions)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sorted((json.loads(line)["split"], json.loads(line)["question_id"]) for line in lines) == [
        *(("", "1"), ("", "2"), ("", "3"), ("b", "1"))
    ]


def _killed_after(ask, *, batches):
    left = [batches]

    def killed(pictures, texts):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return ask(pictures, texts)

    return killed


def test_answers_that_were_made_otherwise_are_not_continued(tmp_path, images):
    path = tmp_path / "base.jsonl"
    answer_questions(QUESTIONS, images, AnswerFile(path, {"model": "x", "dtype": "float32"}), ask_of([]), batch_size=2)
    with pytest.raises(ValueError, match="dtype was 'float32', is 'bfloat16'"):
        AnswerFile(path, {"model": "x", "dtype": "bfloat16"})
    changed = [QUESTIONS[0], Question("2", "b.jpg", "Is there a bus?")]
    with pytest.raises(ValueError, match=r"question 2 was 'Is there a cat\?' about b.jpg there and is"):
        AnswerFile(path, {"model": "x", "dtype": "float32"}).missing(changed)


def test_missing_and_broken_pictures_are_named(tmp_path, images):
    with pytest.raises(ValueError, match=r"1 of 3 pictures are not there, such as c.jpg"):
        check_pictures([*QUESTIONS, Question("3", "c.jpg", "?")], images)
    (images / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b.jpg: cannot be read as a picture"):
        answer_questions(QUESTIONS, images, AnswerFile(tmp_path / "a.jsonl", {}), ask_of([]), batch_size=2)
