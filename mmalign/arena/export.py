"""Votes written as training data, marked in the store so that they never score the board they trained for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.arena.battle import Kind
from mmalign.arena.checks import shown
from mmalign.arena.hold_out import HoldOut
from mmalign.arena.store import VoteStore
from mmalign.arena.training_rows import Made, Ties, pairs, pictures_of, rankings, unary
from mmalign.arena.types import Vote
from mmalign.data import table_of, write_canonical, write_pickapic_table
from mmalign.data.table import count
from mmalign.data.targets import new_parquet
from mmalign.vlm_data import table_of as vlm_table_of
from mmalign.vlm_data import write_vlm_canonical

Form = Literal["canonical", "pickapic", "kto", "rankings", "answers"]
# Form -> what it writes.
FORMS: dict[str, str] = {
    "canonical": "pairs with everything known about them, in mmalign's own parquet",
    "pickapic": "pairs in the columns of Pick-a-Pic",
    "kto": "single pictures that were called acceptable or not, in mmalign's own parquet",
    "rankings": "rankings of three and more pictures, in mmalign's own parquet",
    "answers": "pairs of answers about pictures, in the parquet that family: vlm reads",
}
FORMS_OF: dict[Kind, tuple[Form, ...]] = {
    "pictures": ("canonical", "pickapic", "kto", "rankings"),
    "answers": ("answers",),
}
# Reason -> what it means, behind "3 votes".
LEFT_OUT: dict[str, str] = {
    "both bad": "that called both sides bad and none better: no pair, and never a tie (form=kto: two undesirable rows)",
    "tie": "that called a tie (ties=soft keeps it as a label of 0.5)",
    "unsaid": "that did not say which is better",
    "acceptability unsaid": "that did not say whether a side is acceptable",
    "catch": "on a catch pair",
    "no ranking": "that ranked nothing",
    "pictures": "on pictures, which form=answers is not about",
    "answers": "on answers to a question (form=answers)",
    "empty answer": "on an answer that says nothing, of which nothing can be learned",
}


@dataclass(frozen=True)
class Export:
    """What was written: ``rows`` from ``votes``; ``held_out`` votes stay out; ``left_out``: reason -> number."""

    file: Path
    form: Form
    id: str
    rows: int
    votes: int
    held_out: int
    left_out: Mapping[str, int]
    hold_out: HoldOut = field(default_factory=HoldOut)

    def told(self) -> list[str]:
        """What became of the votes, a sentence each, without the file's name."""
        units = self.hold_out.units(kind_of(self.form))
        lines = [
            f"{count(self.rows, 'row')} from {count(self.votes, 'vote')}",
            f"{count(self.held_out, 'vote')} on held-out {units}: kept for the leaderboard",
        ]
        return lines + [f"Left out: {_named(reason, number)}" for reason, number in self.left_out.items()]

    def __str__(self) -> str:
        return "\n".join([*self.told(), f"Written: {self.file}"])


def export_votes(
    store: VoteStore,
    out: str | Path,
    *,
    form: Form = "canonical",
    ties: Ties = "drop",
    merge: bool = False,
    hold_out: HoldOut | None = None,
    images: str | Path | None = None,
) -> Export:
    """Write the votes that are not held out to the parquet file ``out`` and mark them in ``store``.

    ``ties`` and ``merge`` are about pairs: see ``training_rows.pairs``. ``hold_out`` (default: that of earlier exports
    of this store, else a fifth of the prompts) must stay the same from export to export. ``images`` is the folder that
    relative picture files start from (default: the store's folder); every picture is checked against its SHA-256.
    Votes are marked before the file gets its name, so an interruption never leaves a file whose votes still count.
    Raises ValueError for a setting that would be ignored, a file that exists, no rows, or pictures that changed.
    """
    target = _target(out, form, ties, merge)
    split = _agreed(store, hold_out)
    votes = list(store.votes())
    of_kind = [vote for vote in votes if vote.battle.kind == kind_of(form)]
    used = [vote for vote in of_kind if not split.holds(vote)]
    picture, check = pictures_of(Path(images).expanduser() if images is not None else store.path.parent)
    made = _rows(used, picture, form, ties, merge)
    check()
    if len(of_kind) < len(votes):
        made.left_out["answers" if kind_of(form) == "pictures" else "pictures"] = len(votes) - len(of_kind)
    if not made.rows:
        why = "; ".join(_named(reason, number) for reason, number in made.left_out.items())
        held = len(of_kind) - len(used)
        raise ValueError(f"no row to export: {count(len(votes), 'vote')}, {held} held out{f', {why}' if why else ''}")
    settings = {"ties": ties, "merge": merge, "hold_out": split.as_json()}
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial.parquet")
    try:
        _write(made, form, partial, {"arena": settings, "left_out": dict(made.left_out)})
        identity = store.mark_exported(list(made.votes.items()), form=form, file=target, settings=settings)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Export(
        target, form, identity, len(made.rows), len(made.votes), len(of_kind) - len(used), dict(made.left_out), split
    )


def kind_of(form: Form) -> Kind:
    """What ``form`` is about."""
    return "answers" if form == "answers" else "pictures"


def recorded_hold_out(store: VoteStore) -> HoldOut | None:
    """The hold-out of earlier exports; None where nothing was exported."""
    settings = store.export_settings()
    return HoldOut.from_json(settings[-1]["hold_out"]) if settings else None


def _named(reason: str, number: int) -> str:
    return f"{count(number, 'vote')} {LEFT_OUT[reason]}"


def _agreed(store: VoteStore, asked: HoldOut | None) -> HoldOut:
    recorded = recorded_hold_out(store)
    if asked is not None and recorded is not None and asked != recorded:
        raise ValueError(
            f"earlier exports of this store held out {recorded}; with {asked} prompts or voters that trained would "
            "score the board. Leave hold_out out to keep the earlier one"
        )
    return recorded or asked or HoldOut()


def _write(made: Made, form: Form, path: Path, provenance: Mapping[str, Any]) -> None:
    if form == "answers":
        write_vlm_canonical(vlm_table_of(made.rows, source="arena"), path, provenance=provenance)
        return
    table = table_of(made.rows, source="arena")
    if form == "pickapic":
        write_pickapic_table(table, path)
    else:
        write_canonical(table, path, provenance=provenance)


def _rows(votes: Sequence[Vote], picture, form: Form, ties: Ties, merge: bool) -> Made:
    if form == "kto":
        return unary(votes, picture)
    if form == "rankings":
        return rankings(votes, picture)
    return pairs(votes, picture, ties=ties, merge=merge)


def _target(out: str | Path, form: str, ties: str, merge: bool) -> Path:
    if form not in FORMS:
        raise ValueError(f"form={shown(form)} must be one of {', '.join(FORMS)}")
    if ties not in ("drop", "soft"):
        raise ValueError(f"ties={shown(ties)} must be drop or soft")
    if form in ("kto", "rankings") and (ties != "drop" or merge):
        raise ValueError(f"ties and merge are about pairs and would be ignored with form={form}")
    target = new_parquet(out).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
