"""Votes of people on pictures: a durable store, pairing, a leaderboard that knows its limits, and export for training.

No user interface lives here. ``VoteStore`` keeps battles and votes, ``leaderboard`` ranks, ``export_votes`` writes
training data.
"""

from mmalign.arena.store import Forgotten, VoteStore
from mmalign.arena.types import TAGS, VIEWS, Ballot, Battle, Receipt, Side, Vote

__all__ = ["TAGS", "VIEWS", "Ballot", "Battle", "Forgotten", "Receipt", "Side", "Vote", "VoteStore"]
