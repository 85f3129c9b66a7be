"""The leaderboard: strengths with intervals over people, ranks that respect them, and what the votes cannot tell."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

IntervalKind = Literal["sandwich", "bootstrap"]


@dataclass(frozen=True)
class Standing:
    """One player. ``strength`` is in logits (0 = the mean of its component), ``elo`` = 1000 + 400 / ln 10 * strength.

    ``rank`` = 1 + number of players of the component whose ``low`` is above this ``high``.
    """

    player: str
    rank: int
    strength: float
    low: float
    high: float
    elo: float
    comparisons: int
    wins: int
    losses: int
    ties: int
    component: int


@dataclass(frozen=True)
class Effect:
    """A coefficient in logits with its interval: ``value`` per standard deviation for style, for left against right."""

    name: str
    value: float
    low: float
    high: float

    @property
    def matters(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Board:
    """What ``leaderboard`` found; ``str(board)`` is for the terminal, ``as_json`` for files.

    ``position``: the advantage of the left side in logits, None where it cannot be estimated. ``style``: effects of
    covariates. ``tie_probability``: of two equal players, where ties were offered. ``components``: groups of players
    that can be compared among themselves. ``wins``, ``ties``: tables in the order of ``players``. ``top_two``: the
    difference of the two best of the largest component. ``notes``: what one has to know before quoting a rank.
    """

    standings: tuple[Standing, ...]
    players: tuple[str, ...]
    wins: tuple[tuple[int, ...], ...]
    ties: tuple[tuple[int, ...], ...]
    components: tuple[tuple[str, ...], ...]
    position: Effect | None
    style: tuple[Effect, ...]
    tie_probability: float | None
    top_two: Effect | None
    votes: int
    comparisons: int
    voters: int
    left_out: Mapping[str, int]
    interval: IntervalKind
    level: float
    ridge: float
    notes: tuple[str, ...]

    def __getitem__(self, player: str) -> Standing:
        for standing in self.standings:
            if standing.player == player:
                return standing
        raise KeyError(f"{player!r} is not on the board; there are {', '.join(self.players)}")

    def as_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    def markdown(self) -> str:
        """The standings as a table."""
        lines = [
            f"| rank | model | strength [{self.level:.0%}] | Elo scale | wins | losses | ties |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in self.standings:
            apart = f" (group {one.component + 1})" if len(self.components) > 1 else ""
            lines.append(
                f"| {one.rank} | {one.player}{apart} | {one.strength:+.2f} [{one.low:+.2f}, {one.high:+.2f}] "
                f"| {one.elo:.0f} | {one.wins} | {one.losses} | {one.ties} |"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        head = f"{self.votes} votes of {self.voters} voters, {self.comparisons} comparisons"
        effects = [effect for effect in (self.position, *self.style) if effect is not None]
        told = [f"{one.name}: {one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}] logits" for one in effects]
        return "\n".join([head, self.markdown(), *told, *(f"- {note}" for note in self.notes)])
