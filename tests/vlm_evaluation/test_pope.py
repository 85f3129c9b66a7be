"""POPE by RUCAIBox/POPE ``evaluate.py`` (commit 3df3ba1): what it reads out of an answer, and its sums by hand."""

import json

import pytest

from mmalign.evaluation.vlm import evaluate_pope, read_pope
from mmalign.evaluation.vlm.yes_no import pope_official, strict

ANSWERS = {
    # text: (evaluate.py:13-21, strict)
    "Yes": ("yes", "yes"),
    "No": ("no", "no"),
    "no": ("no", "no"),
    "No, there is not.": ("no", "no"),
    "Yes. No, wait": ("yes", "yes"),  # all after the first period is cut
    "There is no dog.": ("no", "no"),
    "It is not there": ("no", "no"),
    "NO": ("yes", "no"),  # only No, not, no
    "No!": ("yes", "no"),  # the sign stays on the word
    "No\nIt is a cat": ("yes", "no"),  # split at spaces alone
    "  No": ("no", "no"),
    "It isn't there": ("yes", "no"),
    "": ("yes", None),
    "I cannot tell": ("yes", None),
    "There is a dog": ("yes", None),
    "Either yes or no": ("no", None),
    "Not sure": ("yes", "no"),
    "Yes, it is not hidden": ("no", "yes"),  # the official no is wherever not stands
}


@pytest.mark.parametrize(("text", "wanted"), ANSWERS.items(), ids=[repr(text) for text in ANSWERS])
def test_what_is_read_out_of_an_answer(text, wanted):
    assert (pope_official(text), strict(text)) == wanted


def write_split(folder, split, labels):
    lines = [
        {"question_id": number, "image": f"{number % 4}.jpg", "text": f"Is there a thing {number}?", "label": label}
        for number, label in enumerate(labels, start=1)
    ]
    (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


LABELS = ["yes", "yes", "yes", "yes", "no", "no", "no", "no"]
# TP 3 (Yes, Yes, empty), FN 1, TN 2 (No, not), FP 2 (Yes, NO)
BASE = ["Yes", "Yes", "", "No", "No", "It is not there", "Yes", "NO"]
# TP 4, TN 3, FP 1
ALIGNED = ["Yes", "Yes", "Yes", "Yes", "No", "No", "No", "Yes"]


@pytest.fixture
def splits(tmp_path):
    write_split(tmp_path, "adversarial", LABELS)
    write_split(tmp_path, "random", LABELS)
    return read_pope([tmp_path])


def test_the_official_sums(splits):
    assert list(splits) == ["random", "adversarial"]
    found = evaluate_pope(
        splits, {"random": BASE, "adversarial": ["Yes"] * 8}, {"random": ALIGNED, "adversarial": ALIGNED}, bootstrap=200
    )
    base = {row.name: row.base.value for row in found.sections[0].rows}
    assert base["accuracy"] == 5 / 8  # (3 + 2) / 8
    assert base["precision"] == 3 / 5  # 3 / (3 + 2)
    assert base["recall"] == 3 / 4  # 3 / (3 + 1)
    assert base["F1"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)  # 0.6667
    assert base["yes ratio"] == 5 / 8
    assert base["words per answer"] == (1 + 1 + 0 + 1 + 1 + 4 + 1 + 1) / 8
    row = found.find("random", "accuracy")
    assert (row.aligned.value, row.difference.value) == (7 / 8, 2 / 8)
    assert row.difference.low <= 2 / 8 <= row.difference.high
    # adversarial, all yes: accuracy 4/8, precision 4/8, recall 1, F1 2 * .5 / 1.5; the mean is of the two splits.
    assert found.find("mean of splits", "accuracy").base.value == (5 / 8 + 4 / 8) / 2
    assert found.find("mean of splits", "F1").base.value == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert (found.n_pictures, found.n_questions) == (4, 16)


def test_strict_rules_count_what_says_nothing_as_wrong(splits):
    one = {"random": splits["random"]}
    found = evaluate_pope(one, {"random": BASE}, {"random": ALIGNED}, bootstrap=200)
    base = {row.name: row.base.value for row in found.sections[1].rows}
    # The empty answer is no yes any more (TP 2), NO is a no (TN 3, FP 1).
    assert found.sections[1].rules == "strict"
    assert (base["accuracy"], base["precision"], base["recall"]) == (5 / 8, 2 / 3, 2 / 4)
    assert (base["yes ratio"], base["neither yes nor no"]) == (3 / 8, 1 / 8)
    assert any("1 answers say neither yes nor no" in note for note in found.notes)


def test_a_model_that_never_says_yes_has_no_precision(splits):
    one = {"random": splits["random"]}
    row = evaluate_pope(one, {"random": ["No"] * 8}, {"random": ALIGNED}, bootstrap=200).find("random", "precision")
    assert row.base is None  # 0 / 0: the script stops there (evaluate.py:54)
    assert row.difference is None
    assert row.aligned.value == 4 / 5


def test_the_same_answers_differ_by_exactly_nothing(splits):
    found = evaluate_pope(splits, dict.fromkeys(splits, BASE), dict.fromkeys(splits, BASE), bootstrap=200)
    for section in found.sections:
        for row in section.rows:
            assert (row.difference.value, row.difference.low, row.difference.high) == (0, 0, 0)
            assert row.verdict == "unclear"
            assert row.base.low <= row.base.value <= row.base.high
    assert found.examples == []


def test_examples_are_what_one_model_gets_right_and_the_other_wrong(splits):
    found = evaluate_pope({"random": splits["random"]}, {"random": BASE}, {"random": ALIGNED}, bootstrap=200)
    assert [(one.question, one.base, one.aligned, one.gain) for one in found.examples] == [
        ("Is there a thing 4?", "No", "Yes", 1),
        ("Is there a thing 7?", "Yes", "No", 1),
    ]


def test_no_files_and_bad_labels_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"Download coco_pope_random\.json.*RUCAIBox/POPE"):
        read_pope([tmp_path])
    write_split(tmp_path, "random", ["yes", "maybe"])
    with pytest.raises(ValueError, match=r"coco_pope_random.json:2: label must be yes or no, got 'maybe'"):
        read_pope([tmp_path])
