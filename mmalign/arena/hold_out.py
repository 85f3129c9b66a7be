"""Which prompts or voters never train: decided by a hash, so that a vote of tomorrow falls on the same side."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmalign.arena.battle import Kind
from mmalign.arena.checks import check_integer, check_number, shown
from mmalign.arena.types import Vote

SPLIT_BY = ("prompt", "voter")


@dataclass(frozen=True)
class HoldOut:
    """``share`` of all prompts (case and spacing do not matter) or voters, chosen by ``seed``; 0 holds out nothing.

    Of answers the picture is what is held out, with every question about it: one question is asked of many pictures.

    The choice for one prompt never depends on which others there are, so the share holds on average only.
    """

    share: float = 0.2
    by: Literal["prompt", "voter"] = "prompt"
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("hold_out share", self.share, low=0, high=0.95)
        check_integer("hold_out seed", self.seed, low=0)
        if self.by not in SPLIT_BY:
            raise ValueError(f"hold_out by={shown(self.by)} must be one of {', '.join(SPLIT_BY)}")

    def holds(self, vote: Vote) -> bool:
        """Whether ``vote`` is kept for the leaderboard."""
        key = vote.voter if self.by == "voter" else _prompt_of(vote)
        digest = hashlib.sha256(f"{self.seed}:{self.by}:{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def units(self, kind: Kind) -> str:
        """What is held out, in the plural: voters, prompts, or of answers their pictures."""
        if self.by == "voter":
            return "voters"
        return "prompts" if kind == "pictures" else "pictures"

    def as_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HoldOut":
        """What :meth:`as_json` gave."""
        return cls(**data)


def _prompt_of(vote: Vote) -> str:
    if vote.battle.kind == "answers":
        return vote.battle.sides[0].image_sha256
    return " ".join(vote.battle.prompt.lower().split())
