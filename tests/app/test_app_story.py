"""The whole loop: compare, vote, export, train on the votes, open the new run, compare and vote again."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from voting import oracle_votes

from app import board_tab, compare, dataset
from app.arena import Arena
from app.board import findings
from app.context import Context
from app.gallery import GallerySource
from app.live import LiveSource
from app.scoring import Scorers
from app.settings import Settings, checked, given_settings
from app.sources import Request
from mmalign.arena import VoteStore
from mmalign.cli.__main__ import app as cli

STEPS = 4
SMALL = (
    "training.steps=2",
    "training.batch_size=1",
    "training.warmup_steps=0",
    "training.checkpoint_every=2",
    "evaluation.every=2",
    "evaluation.pictures=null",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    with VoteStore(tmp_path / "store" / "votes.db") as opened:
        yield opened


def context_of(settings: Settings, store: VoteStore) -> Context:
    source = LiveSource(settings, device="cpu")
    request = Request("", (0,), "", STEPS, 1.0)
    arena = Arena(source, store, store.path.parent / "pictures", ahead=0, sampled=request)
    return Context(source, Scorers(["oracle"]), arena)


def compared(ctx: Context) -> compare.Comparison:
    left, right = ctx.source.names
    values = {"left": left, "right": right, "prompt": ctx.source.prompts()[0], "negative": "", "seed": 5, "count": 2}
    values |= {"steps": STEPS, "guidance": 1.0, "lora_scale": 1.0, "rewards": ["oracle"]}
    form = compare.read_form(ctx.source, ctx.scorers, **values)
    return compare.compare(ctx.source, ctx.scorers, form, lambda share, what: None, lambda: None)


def test_votes_train_a_model_that_is_compared_and_voted_on_again(store: VoteStore, tmp_path: Path) -> None:
    base = {"name": "base", "base": "playground/tiny-sdxl"}
    first = context_of(checked({"models": [base, base | {"name": "guided", "guidance": 4.0}]}, "the test"), store)
    before = compared(first)
    voters = [first.arena.new_voter() for _ in range(4)]
    said = oracle_votes(first.arena, voters, 20, rng=random.Random(0))
    assert findings(first).board.votes == 20

    _, done = dataset.export(first, "canonical")
    assert 0 < done.rows <= sum(one.ballot.better != "tie" for one in said)
    run = tmp_path / "run"
    told = CliRunner().invoke(
        cli, ["train", "playground/from_votes", f"data.path={done.file}", f"output={run}", *SMALL]
    )
    assert told.exit_code == 0, told.output

    second = context_of(given_settings("playground/tiny-sdxl", run), store)
    after = compared(second)
    # The base is what it was, to the pixel; what the votes made of it is not.
    assert [one.png for one in after.left] == [one.png for one in before.left]
    assert all(new.png != old.png for new, old in zip(after.right, after.left, strict=True))
    assert len(after.scores(0)) == 1
    trained = after.right[0].provenance
    assert trained["adapter"] == "run"
    assert trained["lora_scale"] is None  # the recipe trains the whole model, which has no scale
    assert second.source.effective("aligned", Request("", (0,), lora_scale=0.5)).lora_scale == 1.0

    # What ``mmalign generate`` makes of both is a gallery of the same pictures.
    prompt, made = after.right[0].prompt, tmp_path / "made"
    line = ["generate", "--base", "playground/tiny-sdxl", "--aligned", str(run), "--prompt", prompt, "--out", str(made)]
    told = CliRunner().invoke(cli, [*line, "--seeds", "5", "--steps", str(STEPS), "--guidance", "1"])
    assert told.exit_code == 0, told.output
    gallery = GallerySource([made / "base", made / "aligned"])
    for name, live in (("base", after.left[0]), ("aligned", after.right[0])):
        assert gallery.sample(name, Request(prompt, (5,)))[0].png == live.png

    more = oracle_votes(second.arena, voters, 4, rng=random.Random(1))
    assert {side.model for one in more for side in one.sides} == {"base", "aligned"}
    sides = [side for one in more for side in one.sides if side.model == "aligned"]
    assert {side.adapter_hash for side in sides} == {trained["adapter_hash"]}
    votes = list(store.votes())
    assert sum(vote.exported for vote in votes) == done.votes
    held = sum(done.hold_out.holds(vote) for vote in votes)
    page = board_tab.page_of(second)
    if held:
        assert findings(second).board.comparisons <= held
        assert "held-out prompts score" in page
    else:
        assert "none is on held-out prompts yet" in page
