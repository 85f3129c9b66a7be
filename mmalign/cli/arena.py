"""``mmalign arena``: the leaderboard of a vote store, its votes as training data, and forgetting a voter."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmalign.arena import Agreement

app = typer.Typer(no_args_is_help=True, help="Votes of people: leaderboard, export for training, forgetting a voter.")

WORST = 5  # voters that the terminal names


class FormName(StrEnum):
    """What ``export`` writes."""

    canonical = "canonical"
    pickapic = "pickapic"
    kto = "kto"
    rankings = "rankings"
    answers = "answers"


class Interval(StrEnum):
    """How intervals are made."""

    sandwich = "sandwich"
    bootstrap = "bootstrap"


class TiesName(StrEnum):
    """What becomes of ties between pairs."""

    drop = "drop"
    soft = "soft"


class SplitBy(StrEnum):
    """What is held out."""

    prompt = "prompt"
    voter = "voter"


Store = Annotated[Path, typer.Argument(metavar="STORE", help="The file of the votes, such as runs/arena/votes.db.")]
Key = Annotated[Path | None, typer.Option(help="File with the store's 32-byte key; default: STORE.key.")]
Images = Annotated[Path | None, typer.Option(help="Folder that picture files start from; default: the store's.")]


@app.command("board")
def board(
    store: Store,
    style: Annotated[
        bool, typer.Option("--style", help="Control for brightness, contrast, ...: reads pictures.")
    ] = False,
    exported: Annotated[
        bool, typer.Option("--exported", help="Count votes that were exported for training too.")
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only prompts or voters that the exports of this store held out.")
    ] = False,
    interval: Annotated[Interval, typer.Option(help="Intervals over voters.")] = Interval.sandwich,
    images: Images = None,
    key: Key = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for everything the board knows.")] = None,
) -> None:
    """Strengths, intervals and ranks, how few votes hold up the lead, and how far voters agree."""
    from mmalign.arena import HoldOut, VoteStore, agreement, comparisons_of, leaderboard, smallest_flip
    from mmalign.arena.style import measure_style
    from mmalign.caches.files import write_json

    if images is not None and not style:
        raise ValueError("--images would be ignored: only --style reads pictures")
    with VoteStore(store, key=_key(key), create=False) as opened:
        votes, settings = list(opened.votes()), opened.export_settings()
        folder = images or opened.path.parent
    if held_out and not settings:
        raise ValueError(f"--held-out: nothing was exported from {store}, so nothing was held out")
    data = comparisons_of(
        votes,
        style=measure_style(votes, folder) if style else None,
        exported=exported,
        hold_out=HoldOut.from_json(settings[-1]["hold_out"]) if held_out else None,
    )
    found = leaderboard(data, interval=interval.value)
    flips = [smallest_flip(data, unit=unit) for unit in ("vote", "voter") if len(found.components[0]) > 1]
    voters = agreement(votes)
    typer.echo("\n".join([str(found), *(f"- {flip}" for flip in flips), *_voters(voters)]))
    if out is not None:
        whole = {"board": found.as_json(), "flips": [asdict(flip) for flip in flips], "agreement": asdict(voters)}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, whole)
        typer.echo(f"everything: {out}")


@app.command("export")
def export(
    store: Store,
    out: Annotated[Path, typer.Option(help="A new .parquet file.")],
    form: Annotated[
        FormName, typer.Option(help="canonical, pickapic: pairs; kto: single pictures; answers: of VLMs.")
    ] = FormName.canonical,
    ties: Annotated[TiesName, typer.Option(help="Of pairs: drop ties, or keep them as labels of 0.5.")] = TiesName.drop,
    merge: Annotated[
        bool, typer.Option("--merge", help="Of pairs: one row for two pictures, with a soft label.")
    ] = False,
    hold_out: Annotated[
        float | None, typer.Option(min=0, max=0.95, help="Share that stays for the board; default: as before, or 0.2.")
    ] = None,
    by: Annotated[SplitBy, typer.Option(help="Hold out prompts or voters; goes with --hold-out.")] = SplitBy.prompt,
    images: Images = None,
    key: Key = None,
) -> None:
    """Write votes as training data; what is exported no longer counts on the board."""
    from mmalign.arena import HoldOut, VoteStore
    from mmalign.arena.export import export_votes

    if hold_out is None and by is not SplitBy.prompt:
        raise ValueError("--by would be ignored: give --hold-out with it")
    split = None if hold_out is None else HoldOut(hold_out, by.value)
    with VoteStore(store, key=_key(key), create=False) as opened:
        done = export_votes(opened, out, form=form.value, ties=ties.value, merge=merge, hold_out=split, images=images)
    typer.echo(str(done))


@app.command("forget")
def forget(
    store: Store,
    voter: Annotated[str, typer.Argument(metavar="VOTER", help="The voter as the app knows them, or a pseudonym.")],
    pseudonym: Annotated[bool, typer.Option("--pseudonym", help="VOTER is a pseudonym (v_...).")] = False,
    key: Key = None,
) -> None:
    """Delete every trace of a voter from the store, at their request."""
    from mmalign.arena import VoteStore

    with VoteStore(store, key=_key(key), create=False) as opened:
        gone = opened.forget(voter, is_pseudonym=pseudonym)
    typer.echo(f"{gone.votes} votes deleted")
    for file in gone.exports:
        typer.echo(f"an exported file holds votes of this voter; delete it and export again: {file}")


def _voters(found: "Agreement") -> list[str]:
    """How far voters agree, and who does not agree with themselves."""
    lines = [
        f"- Krippendorff's alpha between voters {_number(found.alpha)}, Cohen's kappa on repeats "
        f"{_number(found.kappa)}: {found.note}"
    ]
    unsure = [
        one for one in found.raters if (one.fooled or 0) > 0.5 or (one.consistent is not None and one.consistent < 0.5)
    ]
    return lines + [
        f"- {one.voter}: {one.votes} votes, alike on {_number(one.consistent)} of {one.repeats} repeats, "
        f"preferred one of two identical pictures in {_number(one.fooled)} of {one.identical}"
        for one in unsure[:WORST]
    ]


def _key(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
