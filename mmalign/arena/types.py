"""What an arena hands around: side, battle, ballot, the receipt of a vote, and the vote that is kept."""

from dataclasses import dataclass

from mmalign.arena.ballot import TAGS, VIEWS, Ballot
from mmalign.arena.battle import Battle, shown_order
from mmalign.arena.side import Side

__all__ = ["TAGS", "VIEWS", "Ballot", "Battle", "Receipt", "Side", "Vote", "shown_order"]


@dataclass(frozen=True)
class Receipt:
    """That a vote is on disk: its own id, the battle, the voter's pseudonym and when (seconds since 1970)."""

    id: str
    battle_id: str
    voter: str
    at: float


@dataclass(frozen=True)
class Vote:
    """A kept vote: receipt, the battle with its models, the ballot, and whether it was exported for training."""

    receipt: Receipt
    battle: Battle
    ballot: Ballot
    exported: bool = False

    @property
    def voter(self) -> str:
        """The voter's pseudonym."""
        return self.receipt.voter
