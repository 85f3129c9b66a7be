"""What a voter says about a battle."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mmalign.arena import checks
from mmalign.arena.battle import Battle
from mmalign.arena.checks import shown

Better = Literal["left", "right", "tie"]
BETTER = ("left", "right", "tie")
# What a voter may say about the reason of a choice; tag -> its meaning, for tooltips and for the data card.
TAGS: dict[str, str] = {
    "prompt": "follows the prompt better or worse",
    "count": "number of objects",
    "text": "written words",
    "anatomy": "hands, faces, bodies",
    "artefacts": "noise, seams, broken shapes",
    "composition": "framing and arrangement",
    "colour": "colour and light",
    "detail": "detail and sharpness",
    "style": "style",
    "realism": "looks real, or does not",
    "beauty": "pleasant to look at",
    "unsafe": "should not be shown",
    "broken": "the picture did not load or is empty",
}
# How the pictures were shown: part of what a vote means.
VIEWS = ("side_by_side", "slider", "flicker", "grid")


@dataclass(frozen=True)
class Ballot:
    """What a voter says; left, right and positions are as shown on the screen.

    Of a pair: ``better`` (None: not said), and separately whether each side is acceptable (``left_ok``, ``right_ok``).
    Of k sides: ``ranking``, positions from best to worst, and ``acceptable``, one entry per position. ``tags`` come
    from ``TAGS``, ``reasons`` is free text. ``seconds`` from showing to voting and ``view`` (one of ``VIEWS``) are kept
    but are no part of the decision: a repeated click with other seconds is the same vote.
    """

    better: Better | None = None
    left_ok: bool | None = None
    right_ok: bool | None = None
    ranking: tuple[int, ...] | None = None
    acceptable: tuple[bool | None, ...] | None = None
    reasons: str = ""
    tags: tuple[str, ...] = ()
    seconds: float | None = None
    view: str | None = None

    def __post_init__(self) -> None:
        # JSON gives lists; they are the same ballot.
        for name in ("ranking", "acceptable", "tags"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.better is not None and self.better not in BETTER:
            raise ValueError(f"better={shown(self.better)} must be one of {', '.join(BETTER)}, or None (not said)")
        checks.check_flag("left_ok", self.left_ok)
        checks.check_flag("right_ok", self.right_ok)
        checks.check_text("reasons", self.reasons, longest=checks.LONGEST_REASONS, empty=True)
        if not isinstance(self.tags, tuple) or len(set(self.tags)) != len(self.tags):
            raise ValueError(f"tags={shown(self.tags)} must be a tuple without repeats")
        for tag in self.tags:
            if tag not in TAGS:
                raise ValueError(f"tags: {shown(tag)} is unknown; choose from {', '.join(TAGS)}")
        if self.seconds is not None:
            checks.check_number("seconds", self.seconds, low=0)
        if self.view is not None and self.view not in VIEWS:
            raise ValueError(f"view={shown(self.view)} must be one of {', '.join(VIEWS)}")
        self._check_ranking()

    def _check_ranking(self) -> None:
        pair = self.better is not None or self.left_ok is not None or self.right_ok is not None
        if self.ranking is None and self.acceptable is None:
            if not pair:
                raise ValueError("the ballot says nothing: give better, left_ok or right_ok, or a ranking")
            return
        if pair:
            raise ValueError("a ballot is on a pair (better, left_ok, right_ok) or on k sides (ranking, acceptable)")
        if self.ranking is not None:
            places = all(isinstance(place, int) and not isinstance(place, bool) for place in self.ranking)
            if not places or sorted(self.ranking) != list(range(len(self.ranking))):
                raise ValueError(
                    f"ranking={shown(self.ranking)} must hold each position from 0 once, best first, such as (2, 0, 1)"
                )
        for value in self.acceptable or ():
            checks.check_flag("acceptable", value)

    def check_against(self, battle: Battle) -> None:
        """Raises ValueError where the ballot is not one on ``battle``."""
        k = len(battle.sides)
        on_pair = self.ranking is None and self.acceptable is None
        if on_pair != (battle.form == "pair"):
            wanted = "better, left_ok and right_ok" if battle.form == "pair" else f"a ranking of {k} positions"
            raise ValueError(f"this battle has {k} sides and asks for {wanted}")
        for name, value in (("ranking", self.ranking), ("acceptable", self.acceptable)):
            if value is not None and len(value) != k:
                raise ValueError(f"{name} has {len(value)} entries, and the battle has {k} sides")

    @property
    def flags(self) -> tuple[bool | None, ...]:
        """Acceptable or not, one entry per position on the screen; empty for a ranking that does not say."""
        return (
            (self.left_ok, self.right_ok) if self.ranking is None and self.acceptable is None else self.acceptable or ()
        )

    @property
    def both_bad(self) -> bool:
        """Whether every side was called unacceptable."""
        return bool(self.flags) and all(flag is False for flag in self.flags)

    def decision(self) -> dict[str, Any]:
        """What counts as the same vote: everything but ``seconds`` and ``view``."""
        return {name: value for name, value in asdict(self).items() if name not in ("seconds", "view")}

    def as_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Ballot":
        """The ballot that :meth:`as_json` gave, or that a client sent; unknown keys are an error."""
        checks.only_known("a ballot", data, {entry.name: None for entry in fields(cls)})
        return cls(**data)
