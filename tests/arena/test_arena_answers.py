"""Votes on answers of vision-language models: what a battle of them is, its board, and the rows they become."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmalign.arena import Ballot, Battle, HoldOut, VoteStore, comparisons_of, leaderboard
from mmalign.arena.export import export_votes
from mmalign.arena.side import Side
from mmalign.arena.style import answer_style, measure_style
from mmalign.cli.__main__ import main
from mmalign.training.config import DataConfig
from mmalign.types import ImagePart, Message
from mmalign.vlm_data import open_source
from tests.arena.making_votes import battle, saved_side
from tests.data.making_data import png

NOTHING = HoldOut(share=0)
QUESTION = "what is here ?"


@pytest.fixture
def store(tmp_path: Path):
    with VoteStore(tmp_path / "votes.db") as opened:
        yield opened


def answered(store: VoteStore, base: str, aligned: str, picture: int = 0) -> Battle:
    """Two answers to ``QUESTION`` about the picture of that number; base stands left."""
    about = saved_side(store.path.parent, "either", QUESTION, seed=picture)
    sides = [replace(about, model=name, answer=text) for name, text in (("base", base), ("aligned", aligned))]
    return Battle(tuple(sides), order=(0, 1))


def test_answers_are_about_one_picture_and_differ(store: VoteStore) -> None:
    fight = answered(store, "a red star", "a blue star")
    assert fight.kind == "answers"
    assert battle().kind == "pictures"
    left, right = fight.sides
    assert left.shows != right.shows
    assert left.image_sha256 == right.image_sha256
    assert Side.from_json(left.as_json()) == left
    with pytest.raises(ValueError, match="all sides show the same answer"):
        Battle((left, replace(left, model="aligned")))
    with pytest.raises(ValueError, match="some sides have an answer and some have none"):
        Battle((left, replace(right, answer=None)))
    with pytest.raises(ValueError, match="about one picture"):
        Battle((left, replace(right, image_sha256="a" * 64)))
    with pytest.raises(ValueError, match="answer"):
        replace(left, answer="a" * 10_001)


def test_a_repeated_battle_of_answers_shows_them_exchanged(store: VoteStore) -> None:
    fight = answered(store, "a red star", "a blue star")
    first = store.open_battle(fight)
    again = replace(fight, order=(1, 0), catch="repeat", catch_of=first)
    assert store.battle(store.open_battle(again)).left.answer == "a blue star"
    with pytest.raises(ValueError, match="in another order"):
        store.open_battle(replace(again, order=(0, 1)))
    other = answered(store, "a red star", "nothing")
    with pytest.raises(ValueError, match="showed something else"):
        store.open_battle(replace(other, order=(1, 0), catch="repeat", catch_of=first))


def test_votes_on_answers_become_rows_of_a_vlm(store: VoteStore, tmp_path: Path) -> None:
    ballots = (
        (("a red star", "a blue star", 0), Ballot("right", False, True, reasons="private")),
        (("one", "two", 1), Ballot("tie")),
        (("bad", "worse", 2), Ballot("tie", False, False)),
        (("", "something", 3), Ballot("right")),
    )
    for said, ballot in ballots:
        store.vote(store.open_battle(answered(store, *said)), "ann", ballot)
    pictured = tuple(saved_side(tmp_path, model, "a picture", seed=9 + n) for n, model in enumerate("ab"))
    store.vote(store.open_battle(Battle(pictured)), "ann", Ballot("left"))
    done = export_votes(store, tmp_path / "answers.parquet", form="answers", ties="soft", hold_out=NOTHING)
    assert dict(done.left_out) == {"both bad": 1, "empty answer": 1, "pictures": 1}
    table = open_source(DataConfig(source="auto", path=str(done.file), ties="soft"))
    rows = {row.chosen: row for row in table}
    row = rows["a blue star"]
    assert row.rejected == "a red star"
    assert row.prompt == (Message("user", (ImagePart(0), QUESTION)),)
    assert row.images[0].read() == png(seed=0)
    assert row.extras["chosen"]["model"] == "aligned"
    assert row.extras["swapped"] is True
    assert "private" not in str(row.extras)
    assert rows["one"].preference == 0.5
    assert len(rows) == 2
    pairs = export_votes(store, tmp_path / "pictures.parquet", hold_out=NOTHING)
    assert pairs.rows == 1
    assert pairs.left_out["answers"] == 4


def test_one_row_for_two_answers_with_the_share_of_votes(store: VoteStore, tmp_path: Path, capsys) -> None:
    for voter, said in (("ann", "left"), ("bob", "left"), ("cleo", "right")):
        store.vote(store.open_battle(answered(store, "yes", "no")), voter, Ballot(said))
    told = main(
        ["arena", "export", str(store.path), "--out", str(tmp_path / "a.parquet"), "--form", "answers", "--merge",
         "--hold-out", "0"]
    )  # fmt: skip
    assert told == 0
    assert "1 row from 3 votes" in capsys.readouterr().out
    (row,) = open_source(DataConfig(source="vlm_canonical", path=str(tmp_path / "a.parquet"), ties="soft"))
    assert (row.chosen, row.rejected) == ("yes", "no")
    assert row.preference == pytest.approx(2 / 3)


def test_pictures_are_held_out_whatever_is_asked_about_them(store: VoteStore, tmp_path: Path) -> None:
    for number in range(30):
        for question in (QUESTION, "how many ?"):
            sides = [replace(side, prompt=question) for side in answered(store, "a", "b", number).sides]
            store.vote(store.open_battle(Battle(tuple(sides))), "ann", Ballot("left"))
    split = HoldOut(0.5)
    held = [vote.battle.left.file for vote in store.votes() if split.holds(vote)]
    assert 0 < len(held) < 60
    assert all(held.count(file) == 2 for file in held)
    done = export_votes(store, tmp_path / "half.parquet", form="answers", hold_out=split)
    assert f"{len(held)} votes on held-out pictures: kept" in str(done)
    assert len(comparisons_of(store.votes(), hold_out=split)) == len(held)
    assert HoldOut(0.5, "voter").units("answers") == "voters"
    assert split.units("pictures") == "prompts"


def test_the_style_of_an_answer_is_its_length(store: VoteStore) -> None:
    assert answer_style("one two three")["length"] == pytest.approx(1.3862943611198906)  # log 4
    for number in range(40):
        longer_is_left = number % 2 == 0
        texts = ("a long answer of many words", "short") if longer_is_left else ("short", "a long answer of many words")
        fight = replace(answered(store, *texts, number), seed=number)
        store.vote(store.open_battle(fight), f"v{number}", Ballot("left" if longer_is_left else "right"))
    votes = list(store.votes())
    found = leaderboard(comparisons_of(votes, style=measure_style(votes, store.path.parent)))
    (effect,) = found.style
    assert effect.name == "length"
    assert effect.low > 0
    plain = leaderboard(comparisons_of(votes))
    assert abs(plain.standings[0].strength) < 1  # each model wins half of its votes
    pictured = tuple(saved_side(store.path.parent, model, "p", seed=90 + n) for n, model in enumerate("ab"))
    store.vote(store.open_battle(Battle(pictured)), "v0", Ballot("left"))
    with pytest.raises(ValueError, match="no style in common"):
        measure_style(store.votes(), store.path.parent)
