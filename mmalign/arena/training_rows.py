"""Votes as rows to train on: pairs of pictures or answers, rankings, and single pictures called acceptable or not."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from mmalign.arena.types import Side, Vote
from mmalign.types import ImageBytes, ImagePart, Message, PreferencePair, Ranking, Unary, VLMPair

Ties = Literal["drop", "soft"]
NAMED = 10


@dataclass
class Made:
    """Rows, the votes they come from as (receipt, voter), and reason -> number of votes or rows without a row."""

    rows: list[Any] = field(default_factory=list)
    votes: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def use(self, vote: Vote) -> None:
        """Note that ``vote`` went into a row."""
        self.votes[vote.receipt.id] = vote.voter


Picture = Callable[[Side], ImageBytes]


def pairs(votes: Sequence[Vote], picture: Picture, *, ties: Ties, merge: bool) -> Made:
    """Pairs of chosen and rejected, one for each vote, or with ``merge`` one for each two pictures (or answers).

    A tie has preference 0.5 (``ties="soft"``) or is dropped; a tie that calls both sides bad is never a pair. Merged,
    the preference is (wins + ties / 2) / votes. A ranking becomes all of its pairs.
    """
    made = Made()
    judged: list[tuple[Vote, Side, Side, float, str]] = []  # chosen, rejected, preference, id
    for vote in votes:
        reason = _no_pair(vote, ties, merge)
        if reason is not None:
            made.left_out[reason] += 1
            continue
        judged += [(vote, *pair) for pair in _judgements(vote)]
    if merge:
        _merged(judged, picture, ties, made)
        return made
    for vote, chosen, rejected, preference, identity in judged:
        made.use(vote)
        swapped = vote.ballot.ranking is None and chosen is vote.battle.right
        extras = {**_said(vote), "chosen": _made_by(chosen), "rejected": _made_by(rejected), "swapped": swapped}
        made.rows.append(_pair(identity, chosen, rejected, picture, preference, vote.voter, extras))
    return made


def rankings(votes: Sequence[Vote], picture: Picture) -> Made:
    """Rankings of k pictures in the order on the screen; labels are minus the place, 0 the best."""
    made = Made()
    for vote in votes:
        ranking = vote.ballot.ranking
        reason = _catch(vote) or ("no ranking" if ranking is None else None)
        if reason is not None or ranking is None:
            made.left_out[str(reason)] += 1
            continue
        made.use(vote)
        sides = vote.battle.shown
        labels = tuple(-float(ranking.index(position)) for position in range(len(sides)))
        extras = {**_said(vote), "sides": [_made_by(side) for side in sides]}
        pictures = tuple(picture(side) for side in sides)
        made.rows.append(Ranking(vote.receipt.id, vote.battle.prompt, pictures, labels, vote.voter, extras))
    return made


def unary(votes: Sequence[Vote], picture: Picture) -> Made:
    """One row for each picture that a vote called acceptable (desirable) or not; both bad are two undesirable rows."""
    made = Made()
    for vote in votes:
        flags = vote.ballot.flags
        reason = _catch(vote) or (None if any(flag is not None for flag in flags) else "acceptability unsaid")
        if reason is not None:
            made.left_out[reason] += 1
            continue
        made.use(vote)
        for position, (side, flag) in enumerate(zip(vote.battle.shown, flags, strict=True)):
            if flag is None:
                continue
            extras = {**_said(vote), **_made_by(side)}
            identity = f"{vote.receipt.id}:{position}"
            made.rows.append(Unary(identity, vote.battle.prompt, picture(side), flag, vote.voter, extras))
    return made


def pictures_of(folder: Path) -> tuple[Picture, Callable[[], None]]:
    """(side -> its picture, a check that raises ValueError naming pictures that are missing or have other bytes)."""
    known: dict[str, ImageBytes] = {}
    wrong: dict[str, str] = {}

    def picture(side: Side) -> ImageBytes:
        if side.image_sha256 not in known:
            path = folder / side.file
            known[side.image_sha256] = ImageBytes(str(path), path=path)
            reason = _trouble(path, side.image_sha256)
            if reason is not None:
                wrong[str(path)] = reason
        return known[side.image_sha256]

    def check() -> None:
        if wrong:
            named = "; ".join(f"{path}: {reason}" for path, reason in list(wrong.items())[:NAMED])
            more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise ValueError(f"{len(wrong)} pictures cannot be used, nothing was exported: {named}{more}")

    return picture, check


def _trouble(path: Path, digest: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == digest else "is not the picture that was voted on (its SHA-256 differs)"


def _catch(vote: Vote) -> str | None:
    return "catch" if vote.battle.catch is not None else None


def _no_pair(vote: Vote, ties: Ties, merge: bool) -> str | None:
    ballot = vote.ballot
    if _catch(vote):
        return "catch"
    if any(side.answer is not None and not side.answer.strip() for side in vote.battle.sides):
        return "empty answer"
    if ballot.ranking is not None:
        return None
    if ballot.both_bad and ballot.better in (None, "tie"):
        return "both bad"
    if ballot.better is None:
        return "unsaid"
    return "tie" if ballot.better == "tie" and ties == "drop" and not merge else None


def _judgements(vote: Vote) -> list[tuple[Side, Side, float, str]]:
    sides, ballot, receipt = vote.battle.shown, vote.ballot, vote.receipt.id
    if ballot.ranking is not None:
        ranked = combinations(ballot.ranking, 2)
        return [(sides[best], sides[worse], 1.0, f"{receipt}:{best}-{worse}") for best, worse in ranked]
    left, right = sides
    chosen, rejected = (right, left) if ballot.better == "right" else (left, right)
    return [(chosen, rejected, 0.5 if ballot.better == "tie" else 1.0, receipt)]


def _merged(judged: Sequence[tuple[Vote, Side, Side, float, str]], picture: Picture, ties: Ties, made: Made) -> None:
    groups: dict[tuple[str, str, str], list[tuple[Vote, Side, Side, float]]] = {}
    for vote, chosen, rejected, preference, _ in judged:
        low, high = sorted((chosen.shows, rejected.shows))
        groups.setdefault((vote.battle.prompt, low, high), []).append((vote, chosen, rejected, preference))
    for (prompt, low, high), members in groups.items():
        sides = {side.shows: side for _, *two, _ in members for side in two}
        won = sum(preference if chosen.shows == low else 1 - preference for _, chosen, _, preference in members)
        share = won / len(members)
        if share == 0.5 and ties == "drop":
            made.left_out["tie"] += len(members)
            continue
        for vote, *_ in members:
            made.use(vote)
        chosen, rejected = (sides[low], sides[high]) if share >= 0.5 else (sides[high], sides[low])
        identity = hashlib.sha256(f"{prompt}:{low}:{high}".encode()).hexdigest()[:24]
        extras = {"chosen": _made_by(chosen), "rejected": _made_by(rejected), "votes": len(members)}
        made.rows.append(_pair(identity, chosen, rejected, picture, max(share, 1 - share), None, extras))


def _pair(
    identity: str,
    chosen: Side,
    rejected: Side,
    picture: Picture,
    preference: float,
    user: str | None,
    extras: dict[str, Any],
) -> PreferencePair | VLMPair:
    if chosen.answer is None or rejected.answer is None:
        return PreferencePair(
            identity, chosen.prompt, picture(chosen), picture(rejected), preference, None, user, extras
        )
    asked = Message("user", (ImagePart(0), chosen.prompt))
    said = {"chosen": chosen.answer, "rejected": rejected.answer, "preference": preference}
    return VLMPair(identity, (asked,), images=(picture(chosen),), user_id=user, extras=extras, **said)


def _said(vote: Vote) -> dict[str, Any]:
    """What goes along with a row; free text stays in the store, for it may tell who wrote it."""
    return {"battle": vote.receipt.battle_id, "tags": list(vote.ballot.tags)}


def _made_by(side: Side) -> dict[str, Any]:
    elsewhere = ("prompt", "file", "answer")
    told = {name: value for name, value in side.as_json().items() if value is not None and name not in elsewhere}
    told["extras"] = dict(told["extras"])
    return {"player": side.player, **told}
