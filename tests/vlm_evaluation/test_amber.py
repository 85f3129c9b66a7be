"""AMBER by junyangwang0410/AMBER ``inference.py`` (commit 534babf): its walk over nouns, and its sums by hand."""

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from mmalign.evaluation.vlm import evaluate_amber, find_tools, read_amber
from mmalign.evaluation.vlm.amber import read_description
from mmalign.evaluation.vlm.records import read_questions
from mmalign.evaluation.vlm.text_tools import TextTools, builtin_tools

RELATION = {
    "sky": [], "forest": ["tree", "leave"], "tree": ["forest"], "person": ["man", "boy"], "ship": ["boat"],
    "dog": [], "bird": ["wing"], "sun": [],
}  # fmt: skip
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["sky", "forest", "ship", "ship"], "hallu": ["bird", "sun"]},
    {"id": 2, "type": "generative", "truth": ["person"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 5, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 7, "type": "discriminative-attribute-state", "truth": "no"},
    {"id": 8, "type": "discriminative-relation", "truth": "yes"},
]
# Words are nouns here, and alike where they begin with the same two letters.
TOOLS = TextTools("nltk", "a stand-in", str.split, str.split, lambda one, other: one[:2] == other[:2])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "relation.json").write_text(json.dumps(RELATION))
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (tmp_path / "safe_words.txt").write_text("light\ndog")
    queries = [{"id": one["id"], "image": f"AMBER_{(one['id'] + 1) // 2}.jpg", "query": "?"} for one in ANNOTATIONS]
    (tmp_path / "query_all.json").write_text(json.dumps(queries))
    return tmp_path


def test_the_walk_over_nouns(folder):
    data = read_amber(folder)
    truth = data.truth_of("1")
    assert "light" not in data.vocabulary
    assert "wing" in data.vocabulary

    def read(text):
        found = read_description(text, truth, data, TOOLS)
        return found.unsafe, set(found.covered), set(found.likely)

    assert read("words of no list") == ((), set(), set())
    assert read("dog") == ((), set(), set())  # a safe word (line 119), though a noun of the vocabulary
    assert read("tree") == ((), {1}, set())  # goes with the forest, the second of the list
    assert read("boat boat") == ((), {2}, set())  # two ships are there; the first is the one that is found
    # equal to a likely hallucination (132-139), and similar to the first of that list (141-147); not there: unsafe
    assert read("wing") == (("wing",), set(), {0})
    # sun begins as no other word does
    assert read("sun man") == (("sun", "man"), set(), {1})
    # bird equals the likely bird and is similar to nothing there: unsafe; boy is similar to boat: covers the ship
    assert read("bird boy") == (("bird",), {2}, {0})


BASE = ["sky tree man man", "dog man", "No", "No", "Yes", "Yes", "Yes", "Yes."]
ALIGNED = ["sky boat", "boy", "No", "No", "No", "Yes", "No", "Yes"]


def test_the_official_sums(folder):
    questions = read_questions(folder / "query_all.json")
    found = evaluate_amber(questions, BASE, ALIGNED, read_amber(folder), TOOLS, bootstrap=200)
    base = {row.name: row.base.value for row in found.sections[0].rows}
    # nouns 4 + 2, unsafe man, man: 2 / 6.001 = 33.3 %; covered sky, forest of 4, person of 1: 3 / 5.001 = 60.0 %
    assert base["CHAIR"] == pytest.approx(0.333)
    assert base["Cover"] == pytest.approx(0.600)
    # 1 of 2 descriptions is clean: 100 - 1 / 2.001 * 100 = 50.02 -> 50.0
    assert base["Hal"] == pytest.approx(0.500)
    assert base["Cog"] == 0
    assert base["words per description"] == 3
    # existence: 3 are no, said No twice: P = 2 / 2.001 = 100.0 (99.95), R = 2 / 3.001 = 66.6;
    # F1 = 2 * 1 * .666 / (1.666 + .001) = 79.9 (line 284)
    row = {row.name: row.base.value for row in section_of(found, "questions, existence").rows}
    assert [row[name] for name in ("accuracy", "precision of No", "recall of No", "F1")] == pytest.approx(
        [0.666, 1.0, 0.666, 0.799]
    )
    # state: Yes to yes, Yes to no: accuracy 1 / 2.001 = 50.0; no No was said: P = 0 / .001 = 0, F1 = 0
    row = {row.name: row.base.value for row in section_of(found, "questions, state").rows}
    assert [row[name] for name in ("accuracy", "precision of No", "recall of No", "F1")] == pytest.approx(
        [0.5, 0, 0, 0]
    )
    # relation: "Yes." is not "Yes": 0 / 1.001
    assert found.find("questions, relation", "accuracy").base.value == 0
    # all: right 2 + 1 of 6 -> 3 / 6.001 = 50.0; P = 2 / 2.001 = 100.0; R = 2 / 4.001 = 50.0;
    # F1 = 2 * .5 / (1.5 + .0001) = 66.7 (66.66)
    row = {row.name: row.base.value for row in section_of(found, "questions, all").rows}
    assert [row[name] for name in ("accuracy", "precision of No", "recall of No", "F1")] == pytest.approx(
        [0.5, 1.0, 0.5, 0.667]
    )
    assert row["yes ratio"] == 3 / 6
    assert row["neither yes nor no"] == 1 / 6
    # (100 - 33.3 + 66.7) / 2
    assert found.find("both parts", "AMBER score").base.value == pytest.approx(66.7)
    # aligned: CHAIR 0, all questions right: P = R = 4 / 4.001 = 100.0, F1 = 2 / 2.0001 = 100.0
    assert found.find("both parts", "AMBER score").aligned.value == pytest.approx(100.0)
    assert any("1 answers are not exactly Yes or No, such as 'Yes.'" in note for note in found.notes)


def section_of(found, title, rules="official"):
    return next(one for one in found.sections if (one.title, one.rules) == (title, rules))


def test_strict_rules_read_more_and_add_nothing(folder):
    questions = read_questions(folder / "query_all.json")
    found = evaluate_amber(questions, BASE, ALIGNED, read_amber(folder), TOOLS, bootstrap=200)
    row = {row.name: row.base for row in section_of(found, "questions, existence", "strict").rows}
    assert row["F1"].value == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert found.find("questions, relation", "accuracy", "strict").base.value == 1
    assert section_of(found, "questions, state", "strict").rows[1].base is None  # no No, so no precision


def test_questions_alone_need_no_language_tools(folder):
    questions = read_questions(folder / "query_all.json")[2:]
    found = evaluate_amber(questions, BASE[2:], ALIGNED[2:], read_amber(folder), builtin_tools(), bootstrap=200)
    assert "descriptions" not in [one.title for one in found.sections]
    assert found.find("questions, all", "F1").base.value == pytest.approx(0.667)


def test_one_picture_has_no_interval(folder):
    questions = read_questions(folder / "query_all.json")[:2]
    with pytest.raises(ValueError, match="all questions are about one picture"):
        evaluate_amber(questions, BASE[:2], BASE[:2], read_amber(folder), TOOLS)


def test_the_builtin_tools_are_named_for_what_they_are(folder):
    questions = [replace(one, image=f"{one.key}.jpg") for one in read_questions(folder / "query_all.json")[:2]]
    texts = ["Trees, the sky; a bird's wings.", "Some boys"]
    found = evaluate_amber(questions, texts, texts, read_amber(folder), builtin_tools(), bootstrap=200)
    section = found.sections[0]
    assert (section.title, section.rules) == ("descriptions", "exact words")
    # tree, sky, bird, wing, boy: bird and wing are not there
    assert section.rows[0].base.value == pytest.approx(0.4)
    assert any("not with published ones" in note for note in found.notes)


def fake_nltk(*, data=True):
    nltk = ModuleType("nltk")

    def word_tokenize(text):
        if not data:
            raise LookupError("Resource punkt_tab not found")
        return text.replace(".", " .").split()

    nltk.__version__ = "3.9"
    nltk.word_tokenize = word_tokenize
    nltk.pos_tag = lambda words: [(word, "NNS" if word.endswith("s") else "VB") for word in words]
    lemmatizer = SimpleNamespace(lemmatize=lambda word: word.removesuffix("s"))
    nltk.stem = ModuleType("nltk.stem")
    nltk.stem.WordNetLemmatizer = lambda: lemmatizer
    return nltk


def test_what_is_not_installed_is_named_before_anything_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match=r"pip install 'mmalign\[amber\]'"):
        find_tools("nltk", vectors=True)
    monkeypatch.setitem(sys.modules, "nltk", fake_nltk(data=False))
    with pytest.raises(ValueError, match=r"nltk\.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"):
        find_tools("nltk", vectors=True)
    monkeypatch.setitem(sys.modules, "nltk", fake_nltk())
    spacy = ModuleType("spacy")
    monkeypatch.setitem(sys.modules, "spacy", spacy)

    def load(name):
        raise OSError(f"[E050] Can't find model {name!r}")

    spacy.load = load
    with pytest.raises(ValueError, match="python -m spacy download en_core_web_lg"):
        find_tools("nltk", vectors=True)


def test_the_official_tools_are_called_as_the_official_script_calls_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", fake_nltk())
    spacy = ModuleType("spacy")
    likeness = {("cat", "dog"): 0.8, ("cat", "kitten"): 0.81}
    spacy.load = lambda name: (
        lambda word: SimpleNamespace(text=word, similarity=lambda other: likeness[word, other.text])
    )
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    tools = find_tools("nltk", vectors=True)
    assert tools.nouns("Two dogs run.") == ["dog"]
    assert tools.similar("cat", "kitten")
    assert not tools.similar("cat", "dog")  # more than 0.8, not 0.8 (line 29)


def test_a_word_without_associations_is_an_error_that_names_it(folder):
    (folder / "annotations.json").write_text(json.dumps([{"id": 1, "type": "generative", "truth": ["mars"]}]))
    with pytest.raises(ValueError, match=r"annotations.json\[0\]: the word 'mars' has no entry in relation.json"):
        read_amber(folder)
    (folder / "relation.json").unlink()
    with pytest.raises(ValueError, match=r"relation.json: there is no such file.*junyangwang0410/AMBER"):
        read_amber(folder)
