"""What the Dataset tab does: votes as rows, filtered, as a contact sheet, and exported for training."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from app import board, validation
from app.context import Context, new_file
from app.gallery import open_picture
from mmalign.arena import Vote
from mmalign.arena.export import FORMS_OF, Export, export_votes
from mmalign.pictures import grid

PAGE = 50
ON_SHEET = 12
TIES = {"left out": "drop", "kept as labels of one half": "soft"}
OUTCOMES = ("all", "decided", "ties", "both bad", "rankings")


def votes_of(ctx: Context, words: Any, model: Any, outcome: Any) -> list[Vote]:
    """The votes whose prompt holds ``words``, with ``model`` on a side (None: any), of that outcome; newest first."""
    words, outcome = validation.together(
        lambda: validation.check_prompt(words if words is not None else "", "search", empty=True),
        lambda: validation.check_choice(outcome, "outcome", OUTCOMES),
    )
    votes = board.votes_of(ctx)
    if model is not None:
        validation.check_choice(model, "model", models_of(votes))
    kept = [vote for vote in votes if words.lower() in vote.battle.prompt.lower() and _is(vote, outcome)]
    return [vote for vote in reversed(kept) if model is None or model in {side.model for side in vote.battle.sides}]


def models_of(votes: Sequence[Vote]) -> list[str]:
    """Models that were voted on."""
    return sorted({side.model for vote in votes for side in vote.battle.sides})


def _is(vote: Vote, outcome: str) -> bool:
    if outcome == "rankings":
        return vote.ballot.ranking is not None
    if outcome == "ties":
        return vote.ballot.better == "tie"
    if outcome == "both bad":
        return vote.ballot.both_bad
    return outcome == "all" or vote.ballot.better in ("left", "right")


def said(vote: Vote) -> str:
    """The vote in words."""
    ballot, shown = vote.ballot, vote.battle.shown
    if ballot.ranking is not None:
        return " › ".join(shown[place].model for place in ballot.ranking)
    names = {"left": f"{shown[0].model} over {shown[1].model}", "right": f"{shown[1].model} over {shown[0].model}"}
    return names.get(ballot.better or "", f"{shown[0].model} = {shown[1].model}")


def flags(vote: Vote) -> str:
    """Which sides were called acceptable, left to right."""
    words = {True: "yes", False: "no", None: "–"}
    return " / ".join(words[flag] for flag in vote.ballot.flags) or "–"


def contact_sheet(votes: Sequence[Vote]) -> Image.Image | None:
    """The pictures of the first votes on two, best first where that was said; None without such votes."""
    pairs = [vote for vote in votes if vote.battle.form == "pair" and vote.battle.kind == "pictures"][:ON_SHEET]
    if not pairs:
        return None
    rows = []
    for vote in pairs:
        sides = list(vote.battle.shown)
        if vote.ballot.better == "right":
            sides.reverse()
        rows.append([open_picture(Path(side.file)) for side in sides])
    columns = [[row[0] for row in rows], [row[1] for row in rows]]
    return grid(
        columns, row_labels=["preferred (or left of a tie)", "other"], column_labels=[said(vote) for vote in pairs]
    )


def export(ctx: Context, form: Any, ties: Any = "drop") -> tuple[Path, Export]:
    """Write what may train, keep it beside the store, and give a copy to download; ``ValueError`` where one may not.

    ``ties``: "drop" them, or keep them as "soft" labels of one half.
    """
    form, ties = validation.together(
        lambda: validation.check_choice(form, "form", FORMS_OF[ctx.arena.sides.kind]),
        lambda: validation.check_choice(ties, "ties", TIES.values()),
    )
    if not ctx.may_export:
        raise ValueError("this app is open to everybody, and exporting marks votes: export where the store is")
    folder = ctx.arena.store.path.parent / "exports"
    done = export_votes(ctx.arena.store, folder / f"{form}-{secrets.token_hex(4)}.parquet", form=form, ties=ties)
    return Path(shutil.copy(done.file, new_file(done.file.name))), done
