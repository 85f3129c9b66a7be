"""What the Leaderboard tab shows: the board, how few votes hold up its lead, and how far voters can be trusted."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.context import Context
from mmalign.arena import Agreement, Board, Flip, HoldOut, Vote, agreement, comparisons_of, leaderboard, smallest_flip
from mmalign.arena.export import recorded_hold_out
from mmalign.arena.style import measure_style

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Findings:
    """Everything about the votes. ``hold_out``: what alone may score, once votes were exported for training."""

    board: Board
    flips: tuple[Flip, ...]
    voters: Agreement
    hold_out: HoldOut | None

    def as_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {
            **self.board.as_json(),
            "flips": [asdict(flip) for flip in self.flips],
            "agreement": asdict(self.voters),
            "hold_out": None if self.hold_out is None else self.hold_out.as_json(),
        }


def findings(ctx: Context, *, style: bool = False) -> Findings:
    """The board of the votes so far; ``style``: strengths that allow for brightness, contrast, colour and sharpness.

    Once an export has trained, only prompts (or voters) that its hold-out kept back count: later votes on a prompt that
    trained do not score either. ``ValueError`` where no vote is left to compare models.
    """
    store = ctx.arena.store
    votes, hold_out = votes_of(ctx), recorded_hold_out(store)
    data = comparisons_of(votes, style=_style(ctx, votes) if style else None, hold_out=hold_out)
    if hold_out is not None and not len(data):
        units = hold_out.units(ctx.arena.sides.kind)
        raise ValueError(
            f"Votes were exported for training, and none is on held-out {units} yet. Vote on: a hash holds out "
            f"{hold_out.share:.0%} of all {units}; where there are few of them, that may be none."
        )
    board = leaderboard(data)
    several = len(board.components[0]) > 1
    flips = tuple(smallest_flip(data, unit=unit) for unit in ("vote", "voter")) if several else ()
    return Findings(board, flips, agreement(votes), hold_out)


def votes_of(ctx: Context) -> list[Vote]:
    """The votes on what this app compares: pictures, or answers. One store may hold both."""
    return [vote for vote in ctx.arena.store.votes() if vote.battle.kind == ctx.arena.sides.kind]


def _style(ctx: Context, votes: Sequence[Vote]) -> dict[str, dict[str, float]]:
    """Measures of every picture or answer, each measured once while the app runs."""
    with _LOCK:
        known = ctx.styles
        new = [vote for vote in votes if any(side.shows not in known for side in vote.battle.sides)]
        try:
            known.update(measure_style(new, ctx.arena.store.path.parent))
        except ValueError as error:
            # The message names a file of this machine, which is nobody's business.
            raise ValueError("a picture of these votes is gone, so style cannot be controlled for") from error
        return dict(known)
