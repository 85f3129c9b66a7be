"""Votes of people on pictures: a durable store, pairing, a leaderboard that knows its limits, and export for training.

No user interface lives here. ``VoteStore`` keeps battles and votes, ``Pairing`` chooses who meets, ``leaderboard``
ranks, ``agreement`` looks at the voters, ``smallest_flip`` at how little holds up the lead. ``mmalign.arena.export``
(which loads the data readers, and torch with them) writes training data, ``mmalign.arena.style`` measures pictures.
"""

from mmalign.arena.agreement import Agreement, agreement
from mmalign.arena.board import Board, Effect, Standing
from mmalign.arena.comparisons import Comparisons, comparisons_of
from mmalign.arena.hold_out import HoldOut
from mmalign.arena.leaderboard import leaderboard
from mmalign.arena.pairing import Choice, Pairing, identical_of, repeat_of
from mmalign.arena.robustness import Flip, smallest_flip
from mmalign.arena.store import Forgotten, VoteStore
from mmalign.arena.types import TAGS, VIEWS, Ballot, Battle, Receipt, Side, Vote

__all__ = [
    "TAGS",
    "VIEWS",
    "Agreement",
    "Ballot",
    "Battle",
    "Board",
    "Choice",
    "Comparisons",
    "Effect",
    "Flip",
    "Forgotten",
    "HoldOut",
    "Pairing",
    "Receipt",
    "Side",
    "Standing",
    "Vote",
    "VoteStore",
    "agreement",
    "comparisons_of",
    "identical_of",
    "leaderboard",
    "repeat_of",
    "smallest_flip",
]
