"""Who meets next, pairs seen twice, and the board's word on voters, style and votes that trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import context_on, draw_gallery
from PIL import Image

from app import arena_markup, board_tab
from app.arena import read_ballot
from app.board import findings
from app.context import Context
from app.matching import Matching
from mmalign.arena import HoldOut, Vote, VoteStore
from mmalign.arena.export import export_votes, recorded_hold_out
from mmalign.cli.manifest import read_pictures, write_pictures


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """``draw_gallery`` and a third folder of brightened copies."""
    out = tmp_path_factory.mktemp("three")
    folders = draw_gallery(out, prompts=10)
    pictures = read_pictures(folders[0])
    levels = [min(255, value + 60) for value in range(256)] * 3
    bright = [Image.open(file).convert("RGB").point(levels) for file in pictures.values()]
    prompts, seeds = [prompt for prompt, _ in pictures], [seed for _, seed in pictures]
    write_pictures(out / "more", {"bright": bright}, prompts, seeds, {"steps": 12, "guidance": 1.0})
    return [*folders, out / "more" / "bright"]


def vote(ctx: Context, token: str | None = None, better: Any = None) -> Any:
    """A vote for the aligned model, else for the brightened one, or what ``better`` says of the shown battle."""
    token = token or ctx.arena.new_voter()
    shown = ctx.arena.next(token)
    names = [side.model for side in ctx.arena.store.battle(shown.battle_id).shown]
    best = max(names, key=("base", "bright", "aligned").index)
    said = better or ("left" if names[0] == best else "right")
    return ctx.arena.vote(token, shown.battle_id, read_ballot(said, None, None, [], "", 2.0))


def test_three_models_meet_where_a_vote_tells_most_and_the_chance_is_logged(three: list[Path], tmp_path: Path) -> None:
    ctx = context_on(three, tmp_path)
    assert ctx.arena.matching.pairing().shares == pytest.approx([1 / 3] * 3)
    for _ in range(40):
        vote(ctx)
    pairing = ctx.arena.matching.pairing()
    assert pairing.shares.min() >= 0.2 / 3
    assert pairing.shares.max() > pairing.shares.min() + 0.01
    for battle in ctx.arena.store.battles():
        assert battle.policy == "adaptive floor=0.2"
        assert battle.propensity is not None
        assert 0.2 / 3 <= battle.propensity < 1
    # Without votes all pairs are alike; a ranking has more places than there are models.
    matching = Matching({name: name for name in "abc"}, VoteStore(tmp_path / "other.db"))
    sides = [matching.draw(2) for _ in range(60)]
    assert {drawn.models for drawn in sides} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert [drawn.propensity for drawn in sides] == pytest.approx([1 / 3] * 60)
    four = matching.draw(4)
    assert four.models == ("a", "b", "c", "a")
    assert four.policy == "uniform"
    ctx.arena.close()


def test_pairs_come_twice_with_their_sides_exchanged(gallery: list[Path], tmp_path: Path) -> None:
    ctx = context_on(gallery, tmp_path)
    ctx.arena.matching.catch_rate = 0.5
    token = ctx.arena.new_voter()
    seen: list[Any] = [vote(ctx, token) for _ in range(40)]
    votes: list[Vote] = list(ctx.arena.store.votes())
    again = [one for one in votes if one.battle.catch == "repeat"]
    assert 3 <= len(again) <= 30
    assert len({one.battle.catch_of for one in again}) == len(again)
    by_id = {one.battle.id: one.battle for one in votes}
    for one in again:
        first = by_id[one.battle.catch_of]
        assert [side.image_sha256 for side in one.battle.shown] == [side.image_sha256 for side in first.shown][::-1]
    assert sum(revealed.repeated for revealed in seen) == len(again)
    told = arena_markup.receipt(next(revealed for revealed in seen if revealed.repeated), 1)
    assert "You saw this pair before" in told
    found = findings(ctx)
    assert found.board.votes == 40 - len(again)  # they check the voter and score nothing
    assert found.voters.raters[0].repeats == len(again)
    assert found.voters.raters[0].consistent == 1.0
    page = board_tab.page_of(ctx)
    assert f"100% of {len(again)}" in page
    ctx.arena.close()


def test_nothing_is_repeated_at_rate_zero_and_a_rate_above_half_is_refused(gallery: list[Path], tmp_path: Path) -> None:
    ctx = context_on(gallery, tmp_path)
    token = ctx.arena.new_voter()
    assert not any(vote(ctx, token).repeated for _ in range(12))
    for rate in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match="--catch-rate"):
            Matching({"a": "a", "b": "b"}, ctx.arena.store, catch_rate=rate)
    ctx.arena.close()


def test_style_is_a_choice_and_finds_voters_who_go_by_brightness(three: list[Path], tmp_path: Path) -> None:
    ctx = context_on(three[:2], tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(80):
        token = ctx.arena.new_voter()
        shown = ctx.arena.next(token)
        left, right = (np.asarray(image).mean() for image in shown.images)
        brighter = "left" if (left > right) == (rng.random() < 0.9) else "right"
        ctx.arena.vote(token, shown.battle_id, read_ballot(brighter, None, None, [], "", 1.0))
    plain, controlled = findings(ctx), findings(ctx, style=True)
    assert plain.board.style == ()
    effects = {effect.name: effect for effect in controlled.board.style}
    assert set(effects) == {"brightness", "contrast", "saturation", "sharpness"}
    assert effects["brightness"].low > 0
    assert not effects["saturation"].matters
    assert "voters prefer more of it" in board_tab.page_of(ctx, style=True)
    assert 'id="style"' not in board_tab.page_of(ctx)
    assert 'id="style"' in board_tab.page_of(ctx, style=True)
    measured = dict(ctx.styles)
    findings(ctx, style=True)
    assert ctx.styles == measured
    ctx.styles.clear()
    next(ctx.arena.folder.glob("*.png")).unlink()
    page = board_tab.page_of(ctx, style=True)
    assert "a picture of these votes is gone" in page
    assert str(tmp_path) not in page
    ctx.arena.close()


def test_prompts_that_trained_never_score_again(three: list[Path], tmp_path: Path) -> None:
    ctx = context_on(three[:2], tmp_path)
    for _ in range(40):
        vote(ctx)
    before = findings(ctx)
    assert before.hold_out is None
    assert before.board.votes == 40
    assert [flip.unit for flip in before.flips] == ["vote", "voter"]
    assert 'id="lead"' in board_tab.page_of(ctx)
    export_votes(ctx.arena.store, tmp_path / "votes.parquet", hold_out=HoldOut(0.4))
    for _ in range(40):  # on prompts of which some trained by now
        vote(ctx)
    split = recorded_hold_out(ctx.arena.store)
    assert split is not None
    held = sum(split.holds(one) for one in ctx.arena.store.votes())
    assert 0 < held < 60
    after = findings(ctx)
    assert after.board.votes == held
    assert "only those on held-out prompts score" in board_tab.page_of(ctx)
    assert SimpleNamespace(**after.as_json()).hold_out["by"] == "prompt"
    ctx.arena.close()
