"""The arena behind the page: blind until the vote is on disk, nothing forged, nothing twice."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app import arena_tab, board_tab, dataset, dataset_tab, markup
from app.arena import Arena, read_ballot, read_ranking
from app.compare import archive
from app.context import Context
from app.limits import RateLimit, TooMany
from mmalign.arena import VoteStore


def ballot(better: str = "left", left: Any = None, right: Any = None) -> Any:
    return read_ballot(better, left, right, [], "", 1.0)


def voted(ctx: Context, number: int, better: str | None = None) -> None:
    """``number`` votes, each of a new voter, for the aligned model or as ``better`` says."""
    for _ in range(number):
        token = ctx.arena.new_voter()
        shown = ctx.arena.next(token)
        sides = ctx.arena.store.battle(shown.battle_id).shown
        said = better or ("left" if sides[0].model == "aligned" else "right")
        ctx.arena.vote(token, shown.battle_id, ballot(said, "yes", "no"))


def test_nothing_tells_the_models_apart_before_the_vote(ctx: Context) -> None:
    token = ctx.arena.new_voter()
    shown = ctx.arena.next(token)
    seen = repr({name: value for name, value in arena_tab.before(shown).items() if "image" not in name})
    for word in ("base", "aligned", "seed", str(ctx.arena.folder)):
        assert word not in seen.replace("arena", "")
    assert all(image.info == {} and not hasattr(image, "filename") for image in shown.images)
    revealed = ctx.arena.vote(token, shown.battle_id, ballot("left", "yes", "no"))
    assert {side.model for side in revealed.sides} == {"base", "aligned"}
    assert len({side.seed for side in revealed.sides}) == 1
    with zipfile.ZipFile(io.BytesIO(archive([[picture] for picture in revealed.pictures]))) as zipped:
        rows = [json.loads(line) for line in zipped.read("manifest.jsonl").decode().splitlines()]
    assert [row["model"] for row in rows] == [side.model for side in revealed.sides]
    assert str(ctx.arena.folder) not in json.dumps(rows)


def test_sides_are_drawn_and_logged(ctx: Context) -> None:
    voted(ctx, 24)
    left = [battle.shown[0].model for battle in ctx.arena.store.battles()]
    assert 0 < left.count("base") < 24  # the chance of failing is 2 in 16 million
    assert {battle.policy for battle in ctx.arena.store.battles()} == {"uniform"}
    assert {battle.propensity for battle in ctx.arena.store.battles()} == {1.0}


def test_forged_and_foreign_battles_are_refused(ctx: Context) -> None:
    token, other = ctx.arena.new_voter(), ctx.arena.new_voter()
    shown = ctx.arena.next(token)
    for forged in ("A" * 24, "", None, 3, "../votes.db", "x" * 5000, shown.battle_id + "A"):
        with pytest.raises(ValueError, match=r"not issued|not given out"):
            ctx.arena.vote(token, forged, ballot())
    with pytest.raises(ValueError, match="another voter"):
        ctx.arena.vote(other, shown.battle_id, ballot())
    name, _, signature = token.partition(".")
    for pass_ in ("me", f"you.{signature}", f"{name}.{'0' * len(signature)}", f"{name}.", None, 7):
        with pytest.raises(ValueError, match="not given out"):
            ctx.arena.vote(pass_, shown.battle_id, ballot())
    assert ctx.arena.store.counts()["votes"] == 0


def test_the_same_vote_again_counts_once_and_another_is_refused(ctx: Context) -> None:
    token = ctx.arena.new_voter()
    shown = ctx.arena.next(token)
    first = ctx.arena.vote(token, shown.battle_id, ballot("left"))
    again = ctx.arena.vote(token, shown.battle_id, ballot("left"))
    assert first.receipt == again.receipt
    with pytest.raises(ValueError, match="already"):
        ctx.arena.vote(token, shown.battle_id, ballot("right"))
    assert ctx.arena.store.counts()["votes"] == 1


def test_a_battle_expires_and_survives_a_restart(ctx: Context, tmp_path: Path) -> None:
    now = [1000.0]
    path = tmp_path / "late" / "votes.db"
    first = Arena(ctx.source, VoteStore(path, clock=lambda: now[0]), tmp_path / "late" / "pictures")
    token = first.new_voter()
    shown, late = first.next(token), first.next(token)
    first.close()
    again = Arena(ctx.source, VoteStore(path, clock=lambda: now[0]), tmp_path / "late" / "pictures")
    assert {side.model for side in again.vote(token, shown.battle_id, ballot()).sides} == {"base", "aligned"}
    now[0] += 4000
    with pytest.raises(ValueError, match="expired"):
        again.vote(token, late.battle_id, ballot())
    again.close()


def test_four_are_ordered(ctx: Context) -> None:
    token = ctx.arena.new_voter()
    shown = ctx.arena.next(token, "ranking")
    assert len(shown.images) == 4
    with pytest.raises(ValueError, match="ranking"):
        ctx.arena.vote(token, shown.battle_id, ballot())
    sides = ctx.arena.store.battle(shown.battle_id).shown
    order = sorted(range(4), key=lambda place: sides[place].model == "base")
    revealed = ctx.arena.vote(token, shown.battle_id, read_ranking(order, ["count"], "", 2.0))
    assert [revealed.sides[place].model for place in order] == ["aligned", "aligned", "base", "base"]
    picks = arena_tab.picked(2, [0, 1, 3])
    assert picks[0] == [0, 1, 3, 2]
    assert picks[2]["interactive"]
    assert arena_tab.picked(2, [2])[0] == [2]
    assert arena_tab.picked(None, [2, 1])[0] == [2]


@pytest.mark.parametrize(
    "values",
    [("up", None, None, [], ""), ("left", "maybe", None, [], ""), ("left", None, None, ["none"], ""), (None,) * 5],
)
def test_ballots_that_are_none(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        read_ballot(*values, 1.0)


def test_visitors_are_limited_on_the_server(gallery: list[Path], ctx: Context) -> None:
    limited = Context(ctx.source, ctx.scorers, ctx.arena, votes=RateLimit(1, "votes"))
    limited.count(limited.votes, None)
    with pytest.raises(TooMany):
        limited.count(limited.votes, None)


def test_the_board_says_what_it_cannot_tell(ctx: Context) -> None:
    assert "No votes yet" in board_tab.page_of(ctx)
    voted(ctx, 4)
    few = board_tab.page_of(ctx)
    for part in ("Before quoting a rank", "only 4 voters", "only won or only lost"):
        assert part in few
    voted(ctx, 8)
    voted(ctx, 3, "tie")
    page = board_tab.page_of(ctx)
    for part in ("95% interval", "12 won, 0 lost, 3 tied", "100%", "logits"):
        assert part in page
    assert page.index(">aligned</td>") < page.index(">base</td>")
    assert 'id="position"' in page


def test_votes_are_found_and_exported_once(ctx: Context) -> None:
    voted(ctx, 30)
    votes = dataset.votes_of(ctx, "", None, "decided")
    assert len(votes) == 30
    assert dataset.votes_of(ctx, "no such words", None, "all") == []
    assert len(dataset.votes_of(ctx, votes[0].battle.prompt.upper(), "base", "all")) >= 1
    with pytest.raises(ValueError, match="unknown"):
        dataset.votes_of(ctx, "", "'; DROP TABLE votes; --", "all")
    sheet = dataset.contact_sheet(votes)
    assert sheet is not None
    assert sheet.width > 500
    assert dataset.said(votes[0]) == "aligned over base"
    copy, done = dataset.export(ctx, "pickapic")
    assert len(pq.read_table(copy)) == done.rows > 0
    assert str(ctx.arena.store.path.parent) not in " ".join(done.told())
    assert done.file.parent == ctx.arena.store.path.parent / "exports"
    assert ctx.arena.store.counts()["exported"] == done.votes
    closed = Context(ctx.source, ctx.scorers, ctx.arena, may_export=False)
    with pytest.raises(ValueError, match="open to everybody"):
        dataset.export(closed, "canonical")
    with pytest.raises(ValueError, match="unknown"):
        dataset.export(ctx, "../../x")


def test_ties_are_soft_labels_where_asked_for_and_both_bad_is_none(ctx: Context) -> None:
    voted(ctx, 12, "tie")  # the left one acceptable, the right one not
    for _ in range(12):
        token = ctx.arena.new_voter()
        ctx.arena.vote(token, ctx.arena.next(token).battle_id, ballot("tie", "no", "no"))
    with pytest.raises(ValueError, match="no row to export"):
        dataset.export(ctx, "canonical")
    with pytest.raises(ValueError, match="are about pairs"):
        dataset.export(ctx, "kto", "soft")
    with pytest.raises(ValueError, match="ties 'half' is unknown"):
        dataset.export(ctx, "canonical", "half")
    copy, done = dataset.export(ctx, "canonical", "soft")
    assert set(pq.read_table(copy)["preference"].to_pylist()) == {0.5}
    assert done.left_out["both bad"] > 0
    assert done.rows == done.votes <= 12


def test_the_next_battle_is_made_before_it_is_asked_for(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    token = ctx.arena.new_voter()
    first = ctx.arena.next(token)
    ready = [future.result() for future in ctx.arena._ready["pair"]]
    assert len(ready) == ctx.arena.ahead == 2
    monkeypatch.setattr(ctx.arena.sides, "of", lambda models: pytest.fail("made while the voter waits"))
    monkeypatch.setattr(ctx.arena, "preload", lambda form: None)
    later = [ctx.arena.next(token) for _ in ready]
    for shown, battle in zip(later, ready, strict=True):
        assert ctx.arena.store.battle(shown.battle_id).sides == battle.sides
    assert len({first.battle_id, *(shown.battle_id for shown in later)}) == 3


def test_a_prompt_with_a_script_stays_text(ctx: Context) -> None:
    from app import arena_markup
    from mmalign.arena import Ballot, Battle, Side

    evil = '<script>alert(1)</script>"><b onclick=x>'
    sides = tuple(Side(evil, evil, "f.png", digit * 64, seed=0, adapter_hash="c" * 64) for digit in "ab")
    assert "<script" not in arena_markup.prompt(evil, "pair")
    assert "<script" not in arena_markup.revealed_name(sides[0], Ballot("left"), 0)
    token = ctx.arena.new_voter()
    store = ctx.arena.store
    voter = ctx.arena.check_voter(token)
    store.vote(store.open_battle(Battle(sides)), voter, Ballot("left", reasons=evil))
    other = (Side("plain", evil, "f.png", "d" * 64), sides[1])
    store.vote(store.open_battle(Battle(other)), voter, Ballot("left"))
    pages = [dataset_tab.rows_of(list(store.votes())), board_tab.page_of(ctx), markup.empty(evil, evil)]
    for page in pages:
        assert "<script" not in page
        assert "<b onclick" not in page
