"""What a battle shows, and every way in which side, battle and ballot can be wrong."""

import dataclasses
import json

import pytest

from mmalign.arena import TAGS, Ballot, Battle, Side
from mmalign.arena.types import shown_order
from tests.arena.making_votes import battle, digest, side


def test_the_public_view_names_no_model_and_no_file() -> None:
    secret = side("secret-model", adapter="secret-lora", adapter_hash="feed", scheduler="euler", seed=77, steps=9)
    fight = Battle((secret, side("other-model")), seed=5, id="x1", expires_at=3.0)
    public = fight.public()
    assert public == {"id": "x1", "prompt": "a red circle", "form": "pair", "sides": 2, "expires_at": 3.0}
    text = json.dumps(public)
    for hidden in ("secret", "other", "png", "euler", digest("secret-model/a red circle")):
        assert hidden not in text


def test_whether_a_battle_is_a_catch_does_not_show() -> None:
    plain = battle(seed=5, id="x")
    catch = dataclasses.replace(plain, catch="repeat", catch_of="y", order=plain.order[::-1])
    assert plain.public() == catch.public()


def test_sides_are_drawn_from_the_seed_evenly() -> None:
    orders = [battle(seed=seed).order for seed in range(400)]
    assert orders == [shown_order(seed, 2) for seed in range(400)]
    assert 160 < sum(order == (0, 1) for order in orders) < 240
    assert len({battle("a", "b", "c", seed=seed).order for seed in range(100)}) == 6
    assert battle().seed != battle().seed


def test_shown_is_the_order_on_the_screen() -> None:
    fight = battle("a", "b", "c", order=(2, 0, 1))
    assert [one.model for one in fight.shown] == ["c", "a", "b"]
    assert (fight.left.model, fight.right.model, fight.form) == ("c", "a", "ranking")


@pytest.mark.parametrize(
    ("fields", "player"),
    [
        ({}, "m"),
        ({"adapter": "dpo"}, "m+dpo"),
        ({"adapter": "dpo", "adapter_hash": "0123456789ab"}, "m+dpo#01234567"),
        ({"adapter_hash": "0123456789ab", "lora_scale": 0.5}, "m+adapter#01234567*0.5"),
        ({"adapter": "dpo", "lora_scale": 1.0}, "m+dpo"),
        ({"model_hash": "ffff00001111"}, "m#ffff0000"),
    ],
)
def test_player_tells_weights_apart(fields: dict, player: str) -> None:
    assert side("m", **fields).player == player


def test_side_survives_json() -> None:
    full = side("m", seed=2**64 - 1, guidance=7.5, steps=30, negative_prompt="", extras={"vae": "x", "k": 1.5})
    assert Side.from_json(json.loads(json.dumps(full.as_json()))) == full


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"model": "m" * 501}, "501 characters; at most 500"),
        ({"prompt": "p" * 10_001}, "at most 10000"),
        ({"prompt": "\ud800"}, "UTF-8"),
        ({"image_sha256": "ABC"}, "64 lower-case"),
        ({"seed": -1}, "whole number from 0"),
        ({"seed": True}, "whole number"),
        ({"steps": 0}, "whole number from 1"),
        ({"guidance": float("nan")}, "finite"),
        ({"lora_scale": "1"}, "finite number"),
        ({"scheduler": 3}, "must be a text"),
        ({"extras": {"a": [1]}}, r"extras\['a'\]"),
    ],
)
def test_wrong_side(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(side(), **fields)


def test_unknown_provenance_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 'cfg'"):
        Side.from_json({**side().as_json(), "cfg": 3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Battle((side(),)), "2 to 16 sides"),
        (lambda: Battle((side("a", "p"), side("b", "q"))), "one prompt"),
        (lambda: battle(order=(0, 0)), "each of 0 to 1 once"),
        (lambda: battle(propensity=0), "had a chance"),
        (lambda: battle(propensity=1.2), "from 0 to 1"),
        (lambda: battle(seed=-1), "seed"),
        (lambda: Battle((side("a"), side("a"))), "same picture"),
        (lambda: battle(catch="identical"), "must show the same picture"),
        (lambda: battle(catch="repeat"), "catch_of"),
        (lambda: battle(catch_of="x"), "catch is not"),
        (lambda: battle(catch="other"), "one of repeat, identical"),
    ],
)
def test_wrong_battle(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "says nothing"),
        ({"tags": ("style",)}, "says nothing"),
        ({"better": "both"}, "left, right, tie"),
        ({"better": "left", "left_ok": 1}, "True, False or None"),
        ({"better": "left", "reasons": "x" * 2001}, "2001 characters; at most 2000"),
        ({"better": "left", "tags": ("pretty",)}, f"unknown; choose from {', '.join(TAGS)}"),
        ({"better": "left", "tags": ("style", "style")}, "without repeats"),
        ({"better": "left", "seconds": -1.0}, "seconds"),
        ({"better": "left", "view": "hologram"}, "side_by_side"),
        ({"better": "left", "ranking": (0, 1)}, "on a pair .* or on k sides"),
        ({"ranking": (0, 0, 1)}, "each position from 0 once"),
        ({"ranking": (1, 2, 3)}, "each position from 0 once"),
        ({"ranking": (0, True)}, "each position"),
        ({"ranking": (0, 1), "acceptable": (1, None)}, "True, False or None"),
    ],
)
def test_wrong_ballot(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ballot(**fields)


def test_ballot_has_to_fit_its_battle() -> None:
    pair, three = battle(), battle("a", "b", "c")
    Ballot(better="left").check_against(pair)
    Ballot(ranking=(2, 0, 1), acceptable=(True, None, False)).check_against(three)
    for ballot, fight, message in [
        (Ballot(better="left"), three, "ranking of 3"),
        (Ballot(ranking=(1, 0)), pair, "better, left_ok"),
        (Ballot(ranking=(1, 0)), three, "2 entries, and the battle has 3"),
        (Ballot(ranking=(0, 1, 2), acceptable=(True,)), three, "1 entries"),
    ]:
        with pytest.raises(ValueError, match=message):
            ballot.check_against(fight)


def test_both_bad_is_about_every_side() -> None:
    assert Ballot(left_ok=False, right_ok=False).both_bad
    assert Ballot(better="tie", left_ok=False, right_ok=False).both_bad
    assert not Ballot(better="tie", left_ok=False).both_bad
    assert not Ballot(better="tie").both_bad
    assert Ballot(ranking=(0, 1, 2), acceptable=(False, False, False)).both_bad
    assert not Ballot(ranking=(0, 1, 2)).both_bad


def test_ballot_survives_json_and_lists() -> None:
    ballot = Ballot(ranking=(1, 0, 2), tags=("style",), seconds=2.5, view="grid")
    assert Ballot.from_json(json.loads(json.dumps(ballot.as_json()))) == ballot
    with pytest.raises(ValueError, match="unknown key 'winner'"):
        Ballot.from_json({"winner": "left"})
