"""CHAIR by LisaAnne/Hallucination ``utils/chair.py`` (commit 6e4d33c): words, ground truth, and sums worked by hand."""

import json

import pytest

from mmalign.evaluation.vlm import chair_judge, evaluate_chair
from mmalign.evaluation.vlm.chair_words import (
    Vocabulary,
    double_words,
    mentions,
    read_double_words,
    read_synonyms,
)
from mmalign.evaluation.vlm.records import Question
from mmalign.evaluation.vlm.singular import singular
from mmalign.evaluation.vlm.text_tools import tokenize

# In the layout of data/synonyms.txt, its two spaces before a word included.
SYNONYMS = """person, man, woman, child, boy, people
dog, puppy
bird, goose
bus, minibus
train
motorcycle,  motor bike, scooter
tie, bow, bow tie
chair, seat
toilet
wine glass
hot dog
dining table, table
knife
sheep, lamb
couch, sofa
"""

SINGULAR = {
    # pattern 3.6, pattern/text/en/inflect.py: what each word becomes there, line of the rule
    "dogs": "dog",  # 521
    "glass": "glas",  # 521: any final s goes
    "bus": "bu",
    "buses": "bus",  # 490
    "ties": "ty",  # 496; ^tie (555) never matches, for it is not used as an expression
    "cookies": "cookies",  # 624-626 gives the plural back
    "doggies": "doggies",
    "women": "woman",  # 576, by its ending
    "people": "person",  # 592
    "children": "child",
    "geese": "goose",
    "knives": "knife",  # 504
    "mice": "mouse",  # 491
    "slice": "slouse",  # 491 again
    "couches": "couch",  # 492
    "sandwiches": "sandwich",
    "sheep": "sheep",
    "skis": "ski",
    "scissors": "scissors",  # 620
    "potatoes": "potato",  # 489
    "vases": "vase",
    "bases": "basis",  # 512
    "hour": "hmy",  # our -> my (590)
    "leaves": "leaf",
    "was": "wa",
    "as": "as",  # christmas ends with it (620)
    "dogs'": "dog's",  # 616
    "pasta": "pastum",  # 519
    "mothers-in-law": "mother-in-law",  # 611-614
}


@pytest.mark.parametrize(("word", "wanted"), SINGULAR.items())
def test_singulars_are_those_the_official_script_gets(word, wanted):
    assert singular(word) == wanted


@pytest.fixture
def vocabulary(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text(SYNONYMS)
    return {rules: Vocabulary(read_synonyms(file, rules), double_words()) for rules in ("official", "corrected")}


CAPTIONS = {
    # caption: (official mentions, corrected mentions), of chair.py:98-134
    "Two dogs and a puppy.": (["dog", "dog"], ["dog", "dog"]),
    "A baby bird": (["bird"], ["bird"]),  # baby and adult are no persons (77-80)
    "an adult geese": (["bird"], ["bird"]),  # only the listed animals: adult goose is no double word
    "a hot dog on the table": (["hot dog", "dining table"], ["hot dog", "dining table"]),
    "two wine glasses": (["wine glass"], ["wine glass"]),  # glasses -> glass
    "one wine glass": (["wine glass"], ["wine glass"]),  # glass -> glas, which is why wine glas is listed (86)
    "the toilet seat": (["toilet"], ["toilet"]),  # 85
    "the seat of the toilet": (["toilet"], ["toilet"]),  # 125
    "a seat": (["chair"], ["chair"]),
    "a bow tie": (["tie"], ["tie"]),  # 84
    "men in ties": (["person"], ["person", "tie"]),  # ties -> ty; man is a synonym
    "a bus": ([], ["bus"]),  # bus -> bu
    "buses": (["bus"], ["bus"]),
    "a motor bike": ([], ["motorcycle"]),  # the synonym has a space in front (54-55)
    "a passenger train": (["train"], ["train"]),
    "the train tracks": ([], []),  # a double word that stands for nothing
    "a dog,cat/dog": (["dog"], ["dog"]),  # a comma parts words, a slash does not
    "A Dog's bone... the dog.": (["dog", "dog"], ["dog", "dog"]),
}


@pytest.mark.parametrize(("caption", "wanted"), CAPTIONS.items())
def test_objects_in_a_caption(vocabulary, caption, wanted):
    found = tuple(
        [one.name for one in mentions(caption, vocabulary[rules], tokenize, rules)]
        for rules in ("official", "corrected")
    )
    assert found == wanted


def test_words_are_parted_as_by_the_penn_treebank():
    text = "The dog's \"big\" bowl (3,000 g) isn't full: it's half-empty... Don't ask--no. 5:30"
    assert tokenize(text) == [
        *("The", "dog", "'s", '"', "big", '"', "bowl", "(", "3,000", "g", ")", "is", "n't", "full", ":"),
        *("it", "'s", "half-empty", "...", "Do", "n't", "ask", "--", "no", ".", "5:30"),
    ]


def test_double_words_are_read_from_the_official_script(tmp_path):
    script = tmp_path / "chair.py"
    script.write_text(
        "        coco_double_words = ['home plate', 'hot dog']\n        animal_words = ['cub']\n"
        "        vehicle_words = ['jet']\n        print \"python 2\"\n"
    )
    assert read_double_words(script) == {
        "home plate": "home plate", "hot dog": "hot dog", "baby cub": "cub", "adult cub": "cub",
        "passenger jet": "jet", "bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass",
    }  # fmt: skip


def write_coco(folder, split="val", images=(1, 2, 3)):
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 62, "name": "chair"}]
    annotations = [
        {"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 18}, {"image_id": 2, "category_id": 1},
        {"image_id": 9, "category_id": 62},
    ]  # fmt: skip
    (folder / f"instances_{split}2014.json").write_text(
        json.dumps({"images": [{"id": one} for one in images], "categories": categories, "annotations": annotations})
    )
    captions = [{"image_id": 1, "caption": "A man and his dog"}, {"image_id": 3, "caption": "Some food on a table"}]
    (folder / f"captions_{split}2014.json").write_text(json.dumps({"annotations": captions}))


QUESTIONS = [Question(str(one), f"COCO_val2014_{one:012d}.jpg", "Describe.") for one in (1, 2, 3)]


@pytest.fixture
def judge(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    return chair_judge(tmp_path, tmp_path / "synonyms.txt", QUESTIONS, tokenize)


def test_what_is_there_is_what_has_a_mask_or_stands_in_a_human_caption(judge):
    assert judge.truth == {1: {"dog", "person"}, 2: {"person"}, 3: {"dining table"}}


def test_the_official_sums(judge):
    base = ["A dog, a dog and a dog on a couch.", "A man on a sofa, on a couch, with a knife", "nothing here"]
    aligned = ["A dog with a man", "A person", "A table"]
    found = evaluate_chair([judge], QUESTIONS, base, aligned, bootstrap=200)
    rows = {row.name: row for row in found.sections[0].rows}
    # mentions: 4 (couch wrong), 4 (couch, couch, knife wrong), 0 -> 4 of 8 wrong; 2 of 3 captions have one
    assert rows["CHAIRs"].base.value == 2 / 3
    assert rows["CHAIRi"].base.value == 4 / 8
    # there: dog, person; person; dining table -> 4; found: dog; person -> 2
    assert rows["object recall"].base.value == 2 / 4
    assert rows["words per caption"].base.value == (10 + 11 + 2) / 3
    assert (rows["CHAIRs"].aligned.value, rows["CHAIRi"].aligned.value) == (0, 0)
    assert rows["object recall"].aligned.value == 4 / 4
    assert rows["CHAIRi"].difference.value == -0.5
    assert [(one.base_verdict, one.aligned_verdict) for one in found.examples] == [
        ("sofa, couch, knife", "nothing made up"),
        ("couch", "nothing made up"),
    ]


def test_missing_files_say_what_to_download(tmp_path):
    synonyms = tmp_path / "synonyms.txt"
    with pytest.raises(ValueError, match=r"synonyms.txt of the repository LisaAnne/Hallucination"):
        chair_judge(tmp_path, synonyms, QUESTIONS, tokenize)
    synonyms.write_text(SYNONYMS)
    with pytest.raises(
        ValueError, match=r"instances_val2014.json: there is no such file.*annotations_trainval2014.zip"
    ):
        chair_judge(tmp_path, synonyms, QUESTIONS, tokenize)
    write_coco(tmp_path, images=(1, 2))
    with pytest.raises(ValueError, match=r"1 pictures are in none of the annotation files there, such as COCO image 3"):
        chair_judge(tmp_path, synonyms, QUESTIONS, tokenize)
    write_coco(tmp_path, "train", images=(3,))
    assert chair_judge(tmp_path, synonyms, QUESTIONS, tokenize).truth[3] == {"dining table"}
