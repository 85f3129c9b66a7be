"""Endpoints for programs, beside those of the page; both end in the same functions and the same checks."""

from typing import Any

import gradio as gr

from app.arena import Revealed, read_ballot, read_ranking
from app.arena_tab import cast
from app.board import findings
from app.compare import data_uri
from app.context import Context, explained
from app.sources import Picture


def build(ctx: Context) -> None:
    """``/voter``, ``/battle``, ``/vote``, ``/rank`` (of pictures) and ``/leaderboard``, inside of the page's Blocks."""

    def voter(request: gr.Request) -> str:
        """A pass for a new voter, to be sent with every call."""
        with explained():
            ctx.count(ctx.votes, request)
            return ctx.arena.new_voter()

    def battle(voter: str, form: str, request: gr.Request) -> dict:
        """A blind battle: id, prompt, and the pictures as data URIs, or the answers, in the order of the screen."""
        with explained():
            ctx.count(ctx.votes, request)
            shown = ctx.arena.next(voter, form)
        images = [data_uri(Picture(image, "", shown.prompt, 0)) for image in shown.images]
        battle = {"id": shown.battle_id, "prompt": shown.prompt, "form": shown.form, "images": images}
        return battle | ({"answers": list(shown.answers)} if shown.answers else {})

    def vote(
        voter: str,
        battle: str,
        better: str,
        left_ok: str,
        right_ok: str,
        tags: list[str],
        reasons: str,
        request: gr.Request,
    ) -> dict:
        """Vote on a pair: better is left, right or tie; left_ok and right_ok are yes, no or empty."""
        values = (better, left_ok, right_ok, tags, reasons)
        return _told(cast(ctx, voter, battle, read_ballot, values, request))

    def rank(voter: str, battle: str, order: list[int], tags: list[str], reasons: str, request: gr.Request) -> dict:
        """Vote on four pictures: their places on the screen, best first."""
        return _told(cast(ctx, voter, battle, read_ranking, (order, tags, reasons), request))

    def board(request: gr.Request) -> dict:
        """The leaderboard as it stands, how few votes hold up its lead, and how far voters agree."""
        with explained():
            ctx.count(ctx.reads, request)
            return findings(ctx).as_json()

    gr.api(voter, api_name="voter")
    gr.api(battle, api_name="battle", concurrency_id="battles", concurrency_limit=4)
    gr.api(vote, api_name="vote", concurrency_limit=8)
    if "ranking" in ctx.arena.sides.forms:
        gr.api(rank, api_name="rank", concurrency_limit=8)
    gr.api(board, api_name="leaderboard", concurrency_limit=2)


def _told(revealed: Revealed) -> dict[str, Any]:
    sides = [{"model": side.model, "seed": side.seed, "sha256": side.image_sha256} for side in revealed.sides]
    return {"receipt": revealed.receipt.id, "at": revealed.receipt.at, "sides": sides}
