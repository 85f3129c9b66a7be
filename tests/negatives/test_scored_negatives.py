"""Answers compared by claims that the model itself rejects, or by a reward; and pairs balanced by length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign.data import decode
from mmalign.negatives import Answered, Decoding, Kit, Speaker, make_negatives, method_of
from mmalign.negatives.best_of import BestOfN
from mmalign.negatives.divide import DivideAndConquer, Judged, chance_of_yes, items
from mmalign.negatives.generators import Origin
from mmalign.training.config import DataConfig
from mmalign.types import ImagePart, Message, VLMPair
from mmalign.vlm_data import open_source, table_of
from mmalign.vlm_data.balancing import balance_of, balanced
from tests.vlm.tiny_processors import save_tiny_vlm, tiny_processor
from tests.vlm.tiny_vlms import tiny_vlm
from tests.vlm.vlm_rows import picture


def answered(number: int = 0) -> Answered:
    return Answered(f"row {number}", (Message("user", (ImagePart(0), "What is it?")),), "A cube.", (picture(number),))


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    model: Any = tiny_vlm("llava", dtype=torch.float32)
    return Speaker(model, tiny_processor("llava"), Decoding(max_new_tokens=6))


def test_the_chance_of_yes_is_that_of_the_first_token(speaker: Speaker) -> None:
    """(p(y) + p(Y)) / (p(y) + p(Y) + p(n) + p(N)): the tiny tokenizer's tokens are characters."""
    shown = decode(picture(0))
    found = chance_of_yes(speaker, "Is it red?", [shown], "row")
    told = speaker.encoder.prompt((Message("user", (ImagePart(0), "Is it red?")),), [shown], "row")
    ids = told.input_ids[None]
    with torch.no_grad():
        media = speaker._media(told, [told.input_ids])
        logits = speaker.model(input_ids=ids, attention_mask=torch.ones_like(ids), **media).logits
    chances = logits[0, -1].softmax(-1)
    y, big_y, n, big_n = (float(chances[speaker.encoder.tokenizer.convert_tokens_to_ids(c)]) for c in "yYnN")
    assert found == pytest.approx((y + big_y) / (y + big_y + n + big_n), rel=1e-5)


def test_the_score_is_minus_the_number_of_rejected_claims() -> None:
    assert Judged("a", ("x", "y", "z"), ("x?", "y?", "z?"), (0.9, 0.2, 0.5)).score == -2  # a tie is no yes
    assert items("Facts:\n- one\n2. two\n* three \n### end\nfour") == ["one", "two", "three"]


class Scripted(Speaker):
    """Answers, and lists, that the test wants."""

    def __init__(self, speaker: Speaker, answers: list[str], listed: dict[str, str]) -> None:
        self.model, self.encoder, self.decoding = speaker.model, speaker.encoder, speaker.decoding
        self.answers, self.listed = answers, listed

    def say_each(self, messages: Any, images: Any, seed: int, begun: Any, **_: Any) -> list[str]:
        return [self.answers[place % len(self.answers)] for place in range(len(begun))]

    def say(self, messages: Any, images: Any, seed: int, **_: Any) -> str:
        return next(said for words, said in self.listed.items() if words in messages[-1].text)


LISTED = {
    "Answer: Good.": "- it is red",
    "Answer: Fair.": "- it is red\n- it is blue",
    "Answer: Bad.": "- it is blue\n- it is huge",
    "- it is red\n- it is blue": "- red?\n- blue?",
    "- it is blue\n- it is huge": "- blue?\n- huge?",
    "- it is red": "- red?",
    "Answer: Mute.": "nothing",
}
CHANCES = {
    "red? Please answer yes or no.": 0.8,
    "blue? Please answer yes or no.": 0.3,
    "huge? Please answer yes or no.": 0.1,
}


def test_answers_are_paired_by_claims_that_the_model_rejects(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good rejects none of its claims, Fair one, Bad two; Mute makes none and is left out."""
    voice = Scripted(speaker, ["Good.", "Fair.", "Bad.", "Mute."], LISTED)
    monkeypatch.setattr("mmalign.negatives.divide.Speaker", lambda *_: voice)
    monkeypatch.setattr("mmalign.negatives.divide.chance_of_yes", lambda s, question, p, n: CHANCES[question])
    made = DivideAndConquer(candidates=4, pairs=9).open(Kit([answered()], tmp_path, 0, voice))(answered(), 3)
    assert isinstance(made, tuple)
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in made] == [
        ("Good.", "Fair.", 1.0),
        ("Good.", "Bad.", 2.0),
        ("Fair.", "Bad.", 1.0),
    ]
    assert made[1].extras["rejected_yes"] == [0.3, 0.1]
    assert made[1].extras["rejected_questions"] == ["blue?", "huge?"]
    assert made[1].extras["response"] == "A cube."
    assert [pair.sample_id for pair in made] == ["row 0/0", "row 0/1", "row 0/2"]
    few = DivideAndConquer(candidates=4, gap=2).open(Kit([answered()], tmp_path, 0, voice))(answered(), 3)
    assert isinstance(few, tuple)
    assert [(pair.chosen, pair.rejected) for pair in few] == [("Good.", "Bad.")]
    assert len(DivideAndConquer(candidates=4).open(Kit([], tmp_path, 0, voice))(answered(), 3)) == 2  # at most 2
    none = DivideAndConquer(candidates=4, gap=3).open(Kit([], tmp_path, 0, voice))(answered(), 3)
    assert none == "no two answers differ by 3 rejected claims"


def test_divide_and_conquer_asks_a_real_model(speaker: Speaker, tmp_path: Path) -> None:
    """This random model says no to everything, so of three sentences two more are rejected than of one."""
    settings = {"split": "sentences", "turn": 'Is this so: "{claim}"?', "candidates": 2}
    out = tmp_path / "claims.parquet"
    method = method_of("divide_and_conquer", settings)
    voice = Scripted(speaker, ["A cube.", "A cube. It is red. It is big."], {})
    built = make_negatives(
        "divide_and_conquer", method, [answered(n) for n in range(2)], out, origin=Origin("rows"), speaker=voice
    )
    assert built.pairs == 2
    row = open_source(DataConfig(source="auto", path=str(out)))[1]
    assert (row.chosen, row.margin) == ("A cube.", 2.0)
    assert row.extras["rejected_claims"] == ["A cube.", "It is red.", "It is big."]
    asked = 'Is this so: "It is red."? Please answer yes or no.'
    expected = chance_of_yes(speaker, asked, [decode(picture(1))], "row")
    assert row.extras["rejected_yes"][1] == pytest.approx(expected, abs=1e-4)
    assert expected < 0.5
    for wrong, problem in (
        ({"candidates": 1}, "candidates=1"),
        ({"split": "x"}, "split must hold"),
        ({"turn": "x"}, "turn must hold"),
    ):
        with pytest.raises(ValueError, match=problem):
            method_of("divide_and_conquer", wrong)


class Length:
    """A reward for many words."""

    name, scale, version, licence, source, prompt_limit = "length", "words", "1", "none", "here", None

    def score(self, prompts: Any, images: Any) -> torch.Tensor:
        assert all(isinstance(image, Image.Image) for image in images)
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def test_the_best_answer_stands_against_the_worst(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.negatives.best_of.find_reward", lambda name: Length())
    voice = Scripted(speaker, ["A.", "A b c.", "A b."], {})
    method = BestOfN(reward="oracle", candidates=6, text="{question}|{answer}")
    pair = method.open(Kit([], tmp_path, 0, voice))(answered(), 0)
    assert isinstance(pair, VLMPair)
    assert (pair.chosen, pair.rejected, pair.margin) == ("A b c.", "A.", 4.0)
    assert pair.extras["chosen_reward"] == len("What is it?|A b c.")
    assert (pair.extras["candidates"], pair.extras["response"]) == (3, "A cube.")
    own = BestOfN(reward="oracle", candidates=6, with_response=True).open(Kit([], tmp_path, 0, voice))(answered(), 0)
    assert isinstance(own, VLMPair)
    assert own.chosen == "A cube."
    apart = BestOfN(reward="oracle", candidates=6, gap=4.0).open(Kit([], tmp_path, 0, voice))(answered(), 0)
    assert apart == "the rewards of all answers lie within 4"


def test_a_judge_of_vision_and_language_is_a_reward_like_any(speaker: Speaker, tmp_path: Path) -> None:
    """The real vlm-judge on a tiny LLaVA's folder: ratings 1 to 5 of the model's own answers."""
    folder = save_tiny_vlm(tmp_path / "judge", seed=1)
    options = {"weights": str(folder), "device": "cpu", "rate": "Does this fit: {}? 1 to 5."}
    method = method_of("best_of", {"reward": "vlm-judge", "candidates": 4, "options": options})
    out = tmp_path / "best.parquet"
    built = make_negatives("best_of", method, [answered()], out, origin=Origin("rows"), speaker=speaker)
    row = open_source(DataConfig(source="auto", path=str(out)))[0]
    assert built.pairs == 1
    assert 5 >= row.extras["chosen_reward"] > row.extras["rejected_reward"] >= 1
    assert row.margin == pytest.approx(row.extras["chosen_reward"] - row.extras["rejected_reward"])
    with pytest.raises(ValueError, match="reward='nobody' is not installed"):
        method_of("best_of", {"reward": "nobody"})


def test_lengths_are_balanced_by_the_published_search() -> None:
    """Ratios (r - c) / r of the pairs: -1, 0, 0.1, 0.5. Means over the pairs up to each ratio:

    up to 0: (20 + 10) / 2 = 15 against 10: 0.5; up to 0.1: 13 against 10: 0.3; up to 0.5: 12 against 12.5: 0.04.
    """
    lengths = [(20, 10), (10, 10), (9, 10), (9, 20)]
    found = balance_of(lengths)
    assert (found.ratio, found.kept) == (0.56, (0, 1, 2, 3))  # (20 - 9) / 20 = 0.55
    assert (found.chosen_words, found.rejected_words) == (12.0, 12.5)
    uneven = balance_of([(10, 10), (9, 10), (2, 30), (1, 30)])
    assert (uneven.ratio, uneven.kept) == (0.0, (0,))
    with pytest.raises(ValueError, match="no pair is left"):
        balance_of([])


def test_balanced_tables_leave_out_pairs_and_say_so() -> None:
    def row(name: str, chosen: int, rejected: int) -> VLMPair:
        return VLMPair(name, (Message("user", ("?",)),), "a " * chosen, "b " * rejected)

    same = VLMPair("same", (Message("user", ("?",)),), "a a", "a a ")
    table, found = balanced(table_of([row("a", 10, 10), same, row("b", 9, 10), row("c", 2, 30)]))
    assert table.sample_ids == ["a"]
    assert found.ratio == 0.0
    assert "3 of 4 rows left out" in str(table.report)
