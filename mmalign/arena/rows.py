"""Battles and votes as rows of the store, and back."""

import json
from collections.abc import Sequence
from typing import Any

from mmalign.arena.types import Ballot, Battle, Receipt, Side, Vote

CHUNK = 1000  # rows read at a time


def battle_values(battle: Battle) -> tuple[Any, ...]:
    """The columns of ``battles``, in their order."""
    return (
        battle.id,
        battle.opened_at,
        battle.expires_at,
        battle.prompt,
        battle.form,
        str(battle.seed),  # 64 bits without a sign do not fit an SQLite integer
        json.dumps(battle.order),
        battle.policy,
        battle.propensity,
        battle.catch,
        battle.catch_of,
    )


def side_values(battle: Battle) -> list[tuple[Any, ...]]:
    """The rows of ``sides``, in the order of pairing."""
    return [
        (battle.id, place, side.player, side.image_sha256, json.dumps(side.as_json(), ensure_ascii=False))
        for place, side in enumerate(battle.sides)
    ]


def battle_of(row: Sequence[Any], sides: Sequence[str]) -> Battle:
    """The battle of a row of ``battles`` and the provenance of its sides."""
    identity, opened_at, expires_at, _, _, seed, order, policy, propensity, catch, catch_of = row
    return Battle(
        sides=tuple(Side.from_json(json.loads(text)) for text in sides),
        seed=int(seed),
        order=tuple(json.loads(order)),
        policy=policy,
        propensity=propensity,
        catch=catch,
        catch_of=catch_of,
        id=identity,
        opened_at=opened_at,
        expires_at=expires_at,
    )


def vote_of(receipt: Receipt, battle: Battle, ballot: str, exported: bool) -> Vote:
    """The vote of a row of ``votes``."""
    return Vote(receipt, battle, Ballot.from_json(json.loads(ballot)), exported)
