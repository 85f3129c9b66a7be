"""A battle: sides of one prompt in a random order, and how they came to meet."""

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

from mmalign.arena import checks
from mmalign.arena.checks import shown
from mmalign.arena.side import Side

Kind = Literal["pictures", "answers"]
CatchKind = Literal["repeat", "identical"]
CATCHES = ("repeat", "identical")
MOST_SIDES = 16


@dataclass(frozen=True)
class Battle:
    """Two pictures, or k for a ranking, of one prompt, in an order that is drawn from ``seed`` and kept.

    Or as many answers to one question about one picture (:attr:`kind`).

    ``sides`` is the order in which they were paired, ``order`` which of them stands first, second, ... on the screen
    (drawn from ``seed`` where it is not given), :attr:`shown` the sides on the screen. ``policy`` and ``propensity``
    (in (0, 1]) say how and with what probability this pairing was chosen. A catch battle (``catch``) checks the voter:
    "repeat" shows the sides of ``catch_of`` again, exchanged; "identical" shows one picture twice. ``id``,
    ``opened_at`` and ``expires_at`` (seconds since 1970) are given by the store.
    """

    sides: tuple[Side, ...]
    seed: int = field(default_factory=lambda: secrets.randbits(53))
    order: tuple[int, ...] = ()
    policy: str = "given"
    propensity: float | None = None
    catch: CatchKind | None = None
    catch_of: str | None = None
    id: str | None = None
    opened_at: float | None = None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.sides) <= MOST_SIDES or not all(isinstance(side, Side) for side in self.sides):
            raise ValueError(f"a battle has 2 to {MOST_SIDES} sides (Side objects), got {len(self.sides)}")
        prompts = {side.prompt for side in self.sides}
        if len(prompts) != 1:
            raise ValueError(f"the sides of a battle have one prompt, got {shown(sorted(prompts))}")
        if self.kind == "answers":
            if any(side.answer is None for side in self.sides):
                raise ValueError("a battle is of pictures or of answers; some sides have an answer and some have none")
            if len({side.image_sha256 for side in self.sides}) != 1:
                raise ValueError("the answers of a battle are about one picture, and these sides have several")
        checks.check_integer("seed", self.seed, low=0)
        if not self.order:
            object.__setattr__(self, "order", shown_order(self.seed, len(self.sides)))
        if sorted(self.order) != list(range(len(self.sides))):
            raise ValueError(f"order={shown(self.order)} must hold each of 0 to {len(self.sides) - 1} once")
        checks.check_text("policy", self.policy, longest=checks.LONGEST_NAME)
        if self.propensity is not None:
            checks.check_number("propensity", self.propensity, low=0, high=1)
            if self.propensity == 0:
                raise ValueError("propensity=0: what was chosen had a chance")
        self._check_catch()

    def _check_catch(self) -> None:
        if self.catch is None:
            if self.catch_of is not None:
                raise ValueError("catch_of is set and catch is not; give catch='repeat'")
            if len({side.shows for side in self.sides}) == 1:
                what = "picture" if self.kind == "pictures" else "answer"
                raise ValueError(f"all sides show the same {what}; mark the battle catch='identical' if that is meant")
            return
        if self.catch not in CATCHES:
            raise ValueError(f"catch={shown(self.catch)} must be one of {', '.join(CATCHES)}, or None")
        if (self.catch == "repeat") != (self.catch_of is not None):
            raise ValueError("catch='repeat' names the battle it repeats in catch_of; catch='identical' has none")
        if self.catch == "identical" and len({side.shows for side in self.sides}) != 1:
            raise ValueError("catch='identical': the sides must show the same picture, or give the same answer")

    @property
    def prompt(self) -> str:
        """The prompt of all sides."""
        return self.sides[0].prompt

    @property
    def shown(self) -> tuple[Side, ...]:
        """The sides as they stand on the screen, left to right. For the server only: they name the models."""
        return tuple(self.sides[place] for place in self.order)

    @property
    def left(self) -> Side:
        """The first side on the screen."""
        return self.shown[0]

    @property
    def right(self) -> Side:
        """The second side on the screen."""
        return self.shown[1]

    @property
    def kind(self) -> Kind:
        """Whether pictures of a prompt are compared, or answers to a question about a picture."""
        return "pictures" if all(side.answer is None for side in self.sides) else "answers"

    @property
    def form(self) -> Literal["pair", "ranking"]:
        """A pair is judged by better / acceptable, three or more sides by a ranking."""
        return "pair" if len(self.sides) == 2 else "ranking"

    def public(self) -> dict[str, Any]:
        """What a voter may know before the vote: no model, file, hash, setting, seed, and not whether it is a catch."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "form": self.form,
            "sides": len(self.sides),
            "expires_at": self.expires_at,
        }


def shown_order(seed: int, k: int) -> tuple[int, ...]:
    """The order on the screen that ``seed`` gives k sides: they are sorted by SHA-256 of "seed:side"."""
    return tuple(sorted(range(k), key=lambda side: hashlib.sha256(f"{seed}:{side}".encode()).digest()))
