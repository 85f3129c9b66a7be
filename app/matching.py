"""Who meets next: where a vote would tell most, once there are three models; and now and then a pair seen before."""

import itertools
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmalign.arena import Battle, Pairing, VoteStore, comparisons_of, repeat_of

GROWTH = 1.02  # the pairing is fitted again once there are so many times more votes
GAP = 5  # votes of the same voter between a pair and its repetition


@dataclass(frozen=True)
class Drawn:
    """The models of a battle, how they were chosen, with what probability, and the seed that orders the sides."""

    models: tuple[str, ...]
    policy: str
    propensity: float
    seed: int


class Matching:
    """Draws for the models of ``players`` (name -> player on the board) from the votes in ``store``.

    Three models or more meet in pairs by :class:`mmalign.arena.Pairing`, which goes where the votes are least sure;
    two always meet, and ``k`` for a ranking are drawn uniformly. ``catch_rate``: share of pairs that repeat one of the
    voter's own with the sides exchanged, as soon as there is one to repeat.
    """

    def __init__(self, players: Mapping[str, str], store: VoteStore, *, catch_rate: float = 0.0) -> None:
        if not 0 <= catch_rate <= 0.5:
            raise ValueError(f"--catch-rate {catch_rate:g} must be from 0 (no pair is repeated) to 0.5")
        self.players, self.store, self.catch_rate = dict(players), store, catch_rate
        self._random = random.SystemRandom()
        self._pairing: tuple[int, Pairing] | None = None

    def draw(self, count: int) -> Drawn:
        """``count`` models; all of them in turn where there are not more."""
        names = list(self.players)
        seed = secrets.randbits(53)
        if count >= len(names):
            repeated = tuple(itertools.islice(itertools.cycle(names), count))
            return Drawn(repeated, "uniform", 1.0, seed)
        if count == 2:
            choice = self.pairing().draw(seed)
            model_of = {player: model for model, player in self.players.items()}
            return Drawn((model_of[choice.first], model_of[choice.second]), choice.policy, choice.propensity, seed)
        draws = list(itertools.combinations(names, count))
        return Drawn(self._random.choice(draws), "uniform", 1 / len(draws), seed)

    def pairing(self) -> Pairing:
        """The pairing after the votes so far, exported ones too; one of a moment ago while there are few more."""
        votes = self.store.counts()["votes"]
        if self._pairing is None or votes > GROWTH * self._pairing[0] or votes < self._pairing[0]:
            data = comparisons_of(self.store.votes(), exported=True)
            self._pairing = votes, Pairing.of_votes(tuple(self.players.values()), data)
        return self._pairing[1]

    def catch(self, voter: str) -> Battle | None:
        """A repetition for ``voter``, at the configured rate; None where there is nothing to repeat, or not this time.

        Battles of models that are no longer here, or whose pictures are gone, are not repeated.
        """
        if self._random.random() >= self.catch_rate:
            return None
        votes = [vote for vote in self.store.votes(voter) if self._still_here(vote.battle)]
        return repeat_of(votes, seed=secrets.randbits(53), gap=GAP)

    def _still_here(self, battle: Battle) -> bool:
        return all(self.players.get(side.model) == side.player and Path(side.file).is_file() for side in battle.sides)
