"""Votes as training data, read back by mmalign's own readers; and that what trained never scores the board."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmalign.arena import Ballot, Battle, HoldOut, VoteStore, leaderboard
from mmalign.arena.export import FORMS, export_votes, recorded_hold_out
from mmalign.arena.side import Side
from mmalign.arena.style import measure_style, picture_style
from mmalign.cli.__main__ import main
from mmalign.cli.arena import FormName
from mmalign.data import open_source
from mmalign.training.config import DataConfig
from mmalign.types import PreferencePair, Ranking, Unary
from tests.arena.making_votes import a_vote, battle, saved_side
from tests.data.making_data import png

NOTHING = HoldOut(share=0)
BALLOTS = {
    "left wins": Ballot(better="left", left_ok=True, right_ok=False, tags=("style",), reasons="my private words"),
    "right wins": Ballot(better="right"),
    "a tie": Ballot(better="tie", left_ok=True, right_ok=True),
    "both bad": Ballot(better="tie", left_ok=False, right_ok=False),
    "only bad": Ballot(left_ok=False, right_ok=False),
    "the lesser evil": Ballot(better="left", left_ok=False, right_ok=False),
}


@pytest.fixture
def store(tmp_path: Path):
    with VoteStore(tmp_path / "votes.db") as opened:
        yield opened


def filled(store: VoteStore) -> dict[str, Battle]:
    """One vote of ann per prompt, which is the name of its ballot."""
    fights = {}
    for number, (prompt, ballot) in enumerate(BALLOTS.items()):
        fights[prompt] = pictured(store, prompt, number)
        store.vote(store.open_battle(fights[prompt]), "ann", ballot)
    return fights


def pictured(store: VoteStore, prompt: str, number: int, models=("base", "aligned")) -> Battle:
    folder = store.path.parent
    return Battle(tuple(saved_side(folder, model, prompt, seed=20 * number + k) for k, model in enumerate(models)))


def read(file: Path, **settings):
    return list(open_source(DataConfig.model_validate({"source": "canonical", "path": str(file), **settings})))


def picture(side: Side, store: VoteStore) -> bytes:
    return (store.path.parent / side.file).read_bytes()


def test_pairs_come_back_through_the_canonical_reader(store: VoteStore, tmp_path: Path) -> None:
    fights = filled(store)
    done = export_votes(store, tmp_path / "out.parquet", ties="soft", hold_out=NOTHING)
    rows = {row.prompt: row for row in read(done.file, ties="soft")}
    assert set(rows) == {"left wins", "right wins", "a tie", "the lesser evil"}
    assert done.left_out == {"both bad": 2}
    assert "never a tie" in str(done)
    for prompt, chosen, preference in [
        ("left wins", "left", 1.0),
        ("right wins", "right", 1.0),
        ("a tie", "left", 0.5),
    ]:
        row, fight = rows[prompt], fights[prompt]
        assert isinstance(row, PreferencePair)
        other = {"left": "right", "right": "left"}[chosen]
        assert row.chosen.read() == picture(getattr(fight, chosen), store)
        assert row.rejected.read() == picture(getattr(fight, other), store)
        assert (row.preference, row.user_id) == (preference, store.pseudonym("ann"))
        assert row.extras["chosen"]["player"] == getattr(fight, chosen).player
        assert row.extras["chosen"]["seed"] == getattr(fight, chosen).seed
    assert rows["left wins"].extras["tags"] == ["style"]
    assert b"private words" not in done.file.read_bytes()
    header = json.loads(pq.read_schema(done.file).metadata[b"mmalign"])
    assert header["provenance"]["arena"] == {"ties": "soft", "merge": False, "hold_out": NOTHING.as_json()}


def test_ties_are_dropped_by_default_and_counted(store: VoteStore, tmp_path: Path) -> None:
    filled(store)
    done = export_votes(store, tmp_path / "out.parquet", hold_out=NOTHING)
    assert (done.rows, done.left_out) == (3, {"both bad": 2, "tie": 1})


def test_pickapic_columns_keep_the_sides(store: VoteStore, tmp_path: Path) -> None:
    fights = filled(store)
    done = export_votes(store, tmp_path / "out.parquet", form="pickapic", ties="soft", hold_out=NOTHING)
    raw = {row["caption"]: row for row in pq.read_table(done.file).to_pylist()}
    assert [(raw[name]["label_0"], raw[name]["label_1"]) for name in ("left wins", "right wins", "a tie")] == [
        (1.0, 0.0),
        (0.0, 1.0),
        (0.5, 0.5),
    ]
    assert raw["right wins"]["jpg_0"] == picture(fights["right wins"].left, store)
    config = DataConfig.model_validate({"source": "pickapic", "path": str(done.file), "ties": "soft"})
    rows = {row.prompt: row for row in open_source(config)}
    assert rows["right wins"].chosen.read() == picture(fights["right wins"].right, store)  # type: ignore[union-attr]
    assert rows["a tie"].preference == 0.5  # type: ignore[union-attr]


def test_acceptability_becomes_unary_rows_and_both_bad_two_of_them(store: VoteStore, tmp_path: Path) -> None:
    fights = filled(store)
    done = export_votes(store, tmp_path / "out.parquet", form="kto", hold_out=NOTHING)
    rows = read(done.file)
    assert all(isinstance(row, Unary) for row in rows)
    flags = {(row.prompt, row.image.read()): row.desirable for row in rows}
    assert done.left_out == {"acceptability unsaid": 1}
    for prompt, left, right in [
        ("left wins", True, False),
        ("a tie", True, True),
        ("both bad", False, False),
        ("only bad", False, False),
        ("the lesser evil", False, False),
    ]:
        assert flags[(prompt, picture(fights[prompt].left, store))] is left
        assert flags[(prompt, picture(fights[prompt].right, store))] is right
    assert len(rows) == done.rows == 10


def test_merged_votes_are_soft_labels(store: VoteStore, tmp_path: Path) -> None:
    fight = pictured(store, "a prompt", 1)
    identity = store.open_battle(fight)
    for voter, better in zip("abcd", ("left", "left", "right", "tie"), strict=True):
        store.vote(identity, voter, Ballot(better=better))
    even = store.open_battle(pictured(store, "even", 2))
    for voter, better in zip("ab", ("left", "right"), strict=True):
        store.vote(even, voter, Ballot(better=better))
    done = export_votes(store, tmp_path / "out.parquet", merge=True, hold_out=NOTHING)
    (row,) = read(done.file, ties="soft")
    assert isinstance(row, PreferencePair)
    assert (row.preference, row.extras["votes"], row.user_id) == (0.625, 4, None)
    assert row.chosen.read() == picture(fight.left, store)
    assert (done.votes, done.left_out) == (4, {"tie": 2})


def test_rankings_come_back_whole_and_as_pairs(store: VoteStore, tmp_path: Path) -> None:
    fight = pictured(store, "three", 1, ("a", "b", "c"))
    store.vote(store.open_battle(fight), "ann", Ballot(ranking=(2, 0, 1), acceptable=(None, False, True)))
    done = export_votes(store, tmp_path / "rankings.parquet", form="rankings", hold_out=NOTHING)
    (row,) = read(done.file)
    assert isinstance(row, Ranking)
    assert row.labels == (-1.0, -2.0, 0.0)
    assert [image.read() for image in row.candidates] == [picture(side, store) for side in fight.shown]
    pairs = read(export_votes(store, tmp_path / "pairs.parquet").file)
    best, middle, worst = (picture(fight.shown[place], store) for place in (2, 0, 1))
    assert {(row.chosen.read(), row.rejected.read()) for row in pairs} == {
        (best, middle),
        (best, worst),
        (middle, worst),
    }
    unary = read(export_votes(store, tmp_path / "unary.parquet", form="kto").file)
    assert {row.image.read(): row.desirable for row in unary} == {worst: False, best: True}


def test_exported_votes_do_not_score_the_board(store: VoteStore, tmp_path: Path) -> None:
    for number in range(40):
        fight = pictured(store, f"prompt {number}", number)
        store.vote(store.open_battle(fight), f"v{number % 8}", Ballot(better="left"))
    done = export_votes(store, tmp_path / "out.parquet", hold_out=HoldOut(0.3))
    assert 0 < done.held_out < 40
    assert done.votes + done.held_out == 40
    board = leaderboard(store.votes())
    assert (board.votes, board.left_out) == (done.held_out, {"exported": done.votes})
    assert any(f"{done.votes} votes were exported for training" in note for note in board.notes)
    assert leaderboard(store.votes(), exported=True).votes == 40
    trained = {row.prompt for row in read(done.file)}
    held = recorded_hold_out(store)
    assert held == HoldOut(0.3)
    assert not trained & {vote.battle.prompt for vote in store.votes() if held.holds(vote)}
    # A later vote on a prompt that trained is not exported, but its prompt is not held out either.
    late = pictured(store, next(iter(trained)), 90)
    store.vote(store.open_battle(late), "late", Ballot(better="right"))
    assert leaderboard(store.votes()).votes == done.held_out + 1
    assert leaderboard(store.votes(), hold_out=held).votes == done.held_out
    with pytest.raises(ValueError, match="Leave hold_out out to keep the earlier one"):
        export_votes(store, tmp_path / "again.parquet", hold_out=HoldOut(0.1))
    assert export_votes(store, tmp_path / "again.parquet").hold_out == HoldOut(0.3)


def test_the_hold_out_is_about_prompts_or_voters_and_never_moves() -> None:
    votes = [
        a_vote(battle(prompt=f"Prompt {number % 50}"), f"v{number % 40}", BALLOTS["a tie"]) for number in range(200)
    ]
    for by, key in (("prompt", lambda vote: vote.battle.prompt), ("voter", lambda vote: vote.voter)):
        split = HoldOut(0.3, by)
        sides = {}
        for vote in votes:
            sides.setdefault(key(vote), set()).add(split.holds(vote))
        assert all(len(side) == 1 for side in sides.values())
        assert 0.1 < sum(True in side for side in sides.values()) / len(sides) < 0.5
        assert [split.holds(vote) for vote in votes[:9]] == [HoldOut(0.3, by).holds(vote) for vote in votes[:9]]
        assert any(split.holds(vote) != HoldOut(0.3, by, seed=1).holds(vote) for vote in votes)
    # Spelt alike, held alike; a larger share holds all that a smaller one did.
    spelt = a_vote(battle(prompt="  prompt   7 "), "ann", BALLOTS["a tie"])
    assert HoldOut(0.3).holds(spelt) == HoldOut(0.3).holds(votes[7])
    assert all(HoldOut(0.6).holds(vote) for vote in votes if HoldOut(0.3).holds(vote))


def test_pictures_that_are_gone_or_changed_stop_the_export(store: VoteStore, tmp_path: Path) -> None:
    fights = filled(store)
    (tmp_path / fights["left wins"].left.file).unlink()
    (tmp_path / fights["right wins"].left.file).write_bytes(png(seed=4321))
    with pytest.raises(ValueError, match=r"2 pictures cannot be used(.|\n)*SHA-256 differs"):
        export_votes(store, tmp_path / "out.parquet", hold_out=NOTHING)
    assert store.counts()["exported"] == 0
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob(".*.parquet"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "csv"}, "canonical, pickapic, kto, rankings"),
        ({"form": "kto", "ties": "soft"}, "would be ignored"),
        ({"form": "rankings", "merge": True}, "would be ignored"),
        ({"ties": "half"}, "drop or soft"),
        ({"out": "rows.csv"}, "ends in .parquet"),
        ({"form": "rankings"}, "no row to export: 6 votes, 0 held out, 6 votes that ranked nothing"),
    ],
)
def test_wrong_export(store: VoteStore, tmp_path: Path, settings: dict, message: str) -> None:
    filled(store)
    out = tmp_path / settings.pop("out", "out.parquet")
    with pytest.raises(ValueError, match=message):
        export_votes(store, out, hold_out=NOTHING, **settings)
    assert store.counts()["exported"] == 0


def test_an_interrupted_export_never_leaves_a_file_whose_votes_count(
    store: VoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "mark_exported", full)
        with pytest.raises(OSError, match="disk full"):
            export_votes(store, tmp_path / "out.parquet", hold_out=NOTHING)
    assert store.counts()["exported"] == 0
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob(".*parquet"))
    assert export_votes(store, tmp_path / "out.parquet", hold_out=NOTHING).rows == 3


def test_an_export_never_overwrites(store: VoteStore, tmp_path: Path) -> None:
    filled(store)
    (tmp_path / "out.parquet").touch()
    with pytest.raises(ValueError, match="exists"):
        export_votes(store, tmp_path / "out.parquet")


def test_the_command_line_offers_every_form() -> None:
    assert [form.value for form in FormName] == list(FORMS)


def test_the_command_line(store: VoteStore, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    filled(store)
    path, out = str(store.path), tmp_path / "out.parquet"
    assert main(["arena", "board", path, "--style", "--out", str(tmp_path / "board.json")]) == 0
    assert "| rank | model |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "board.json").read_text())
    assert kept["board"]["votes"] == 4
    assert {flip["unit"] for flip in kept["flips"]} == {"vote", "voter"}
    assert main(["arena", "board", path, "--held-out"]) == 2
    assert "nothing was exported" in capsys.readouterr().err
    assert main(["arena", "export", path, "--form", "kto", "--hold-out", "0", "--out", str(out)]) == 0
    assert "10 rows from 5 votes" in capsys.readouterr().out
    assert main(["arena", "export", path, "--by", "voter", "--out", str(tmp_path / "b.parquet")]) == 2
    assert main(["arena", "forget", path, "ann"]) == 0
    told = capsys.readouterr().out
    assert "6 votes deleted" in told
    assert str(out) in told
    assert main(["arena", "board", str(tmp_path / "none.db")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_style_of_pictures(store: VoteStore) -> None:
    from PIL import Image

    gray = picture_style(Image.new("RGB", (8, 8), (51, 51, 51)))
    assert gray == pytest.approx({"brightness": 0.2, "contrast": 0, "saturation": 0, "sharpness": 0}, abs=1e-9)
    assert picture_style(Image.new("RGB", (8, 8), (255, 0, 0)))["saturation"] == 1
    stripes = Image.new("L", (8, 8))
    stripes.putdata([255 * (number % 2) for number in range(64)])
    measured = picture_style(stripes)
    assert (measured["brightness"], measured["contrast"]) == pytest.approx((0.5, 0.5))
    assert measured["sharpness"] == pytest.approx(0.5**0.5)  # every horizontal step is 1, every vertical one 0
    fights = filled(store)
    style = measure_style(store.votes(), store.path.parent)
    assert set(style) == {side.image_sha256 for fight in fights.values() for side in fight.sides}
    with pytest.raises(ValueError, match="no measures"):
        leaderboard(store.votes(), style=dict(list(style.items())[:1]))
    (store.path.parent / fights["a tie"].left.file).unlink()
    with pytest.raises(ValueError, match="style needs every picture"):
        measure_style(store.votes(), store.path.parent)
