"""``mmalign data``: look at preference data, and convert it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmalign.cli.data_vlm import balance

if TYPE_CHECKING:
    from rich.table import Table

    from mmalign.data import RowTable
    from mmalign.inspection import Inspection

app = typer.Typer(no_args_is_help=True, help="Look at preference data before training on it, or convert it.")

CLIP_WORDS = 60  # about as many English words as fit into 77 tokens
SHOWN = 5  # findings of a kind that the terminal names; inspection.json has all


class Target(StrEnum):
    """Formats that ``convert`` writes."""

    canonical = "canonical"
    pickapic = "pickapic"
    images = "images"
    trl = "trl"
    llava = "llava"
    llama_factory = "llama_factory"
    ms_swift = "ms_swift"
    rlhf_v = "rlhf_v"
    rlaif_v = "rlaif_v"
    povid = "povid"
    mdpo = "mdpo"
    mm_rlhf = "mm_rlhf"
    mia_dpo = "mia_dpo"


FILES = (Target.canonical, Target.pickapic, Target.trl, Target.rlhf_v, Target.rlaif_v)
FOLDERS = tuple(form for form in Target if form not in FILES)


class As(StrEnum):
    """What ``data.as`` takes."""

    native = "native"
    pairs = "pairs"
    unary = "unary"


Path_ = Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, a glob, or a dataset id of the hub.")]
Source = Annotated[str, typer.Option(help="Format of the data; auto recognises it.")]
Kind = Annotated[As, typer.Option("--as", help="Rows as they are, rankings as pairs, or pairs as single pictures.")]
Images = Annotated[str | None, typer.Option(help="Folder that picture paths in a file start from.")]
Split = Annotated[str | None, typer.Option(help="Split of a dataset on the hub, or of HPDv2-like folders.")]
MaxRows = Annotated[int | None, typer.Option(min=1, help="Read no more rows than this.")]


@app.command("inspect")
def inspect(
    path: Path_,
    source: Source = "auto",
    as_: Kind = As.native,
    images: Images = None,
    split: Split = None,
    max_rows: MaxRows = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Look at this many rows, spread evenly.")] = None,
    near: Annotated[int, typer.Option(min=0, max=15, help="Bits of 64 in which near-duplicates may differ.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: runs/inspect/NAME.")] = None,
) -> None:
    """What the data is, what is wrong with it, and a contact sheet; nothing is changed."""
    from rich.console import Console

    from mmalign.cli.data_vlm import inspect_vlm, open_vlm, vlm_source
    from mmalign.inspection import contact_sheet, inspect_table
    from mmalign.pictures import save_png

    folder = out or Path("runs/inspect") / (Path(path).stem.strip("*") or "data")
    form = vlm_source(path, source, split)
    if form is not None:
        if (as_, near) != (As.native, 4):
            raise ValueError(f"--as and --near have no meaning for {form}, pairs of responses")
        table = open_vlm(path, source, ties="soft", images=images, split=split, max_rows=max_rows)
        inspect_vlm(table, folder, sample, _progress)
        return
    table = _open(path, source, as_, images, split, max_rows)
    console = Console()
    total = len(table) if sample is None else min(sample, len(table))
    with _progress() as bar:
        task = bar.add_task("looking at every picture", total=total)
        found = inspect_table(table, sample=sample, near=near, progress=lambda done: bar.advance(task, done))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inspection.json").write_text(json.dumps(found.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    console.print(found.report, markup=False, highlight=False)
    console.print(summary(found))
    for line in findings(found):
        console.print(f"- {line}", markup=False, highlight=False)
    sheet = contact_sheet(table)
    if sheet is not None:
        console.print(f"contact sheet: {save_png(sheet, folder / 'contact_sheet.png')}", soft_wrap=True)
    console.print(f"everything found: {folder / 'inspection.json'}", soft_wrap=True)


@app.command("convert")
def convert(
    path: Path_,
    out: Annotated[Path, typer.Option(help=f"A .parquet file ({', '.join(FILES)}) or a new folder (all others).")],
    to: Annotated[Target, typer.Option(help="Format to write.")] = Target.canonical,
    source: Source = "auto",
    as_: Kind = As.native,
    images: Images = None,
    split: Split = None,
    max_rows: MaxRows = None,
    rows_per_file: Annotated[
        int | None, typer.Option(min=1, help="Canonical only: a folder of parts with this many rows each.")
    ] = None,
    max_corrupt: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable rows above which nothing is written.")
    ] = 0.01,
) -> None:
    """Write the rows in another format, pictures byte for byte; unusable rows are counted, named and left out."""
    from mmalign.cli.data_vlm import convert_vlm, open_vlm, vlm_source
    from mmalign.data import verify, write_canonical, write_images, write_pickapic_table

    if rows_per_file is not None and to != Target.canonical:
        raise ValueError(f"--rows-per-file would be ignored: --to {to.value} writes everything together")
    if to not in FOLDERS and rows_per_file is None and out.suffix != ".parquet":
        raise ValueError(f"--out {out}: --to {to.value} writes one file, so give a name that ends in .parquet")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not overwritten; give another name")
    form = vlm_source(path, source, split)
    if form is not None:
        if rows_per_file is not None or as_ is not As.native:
            raise ValueError(f"--rows-per-file and --as have no meaning for {form}, pairs of responses")
        ties = "soft" if to == Target.canonical else "drop"
        table = open_vlm(path, source, ties=ties, images=images, split=split, max_rows=max_rows)
        convert_vlm(table, out, to.value, max_corrupt)
        return
    if to not in (Target.canonical, Target.pickapic, Target.images):
        raise ValueError(f"--to {to.value} is for rows of vision-language models; {path} holds none")
    table = verify(_open(path, source, as_, images, split, max_rows), max_corrupt)
    typer.echo(str(table.report))
    if to == Target.pickapic:
        _, left_out = write_pickapic_table(table, out)
        if left_out:
            typer.echo(f"not kept, for Pick-a-Pic has no columns for them: {', '.join(left_out)} (canonical keeps all)")
    elif to == Target.images:
        write_images(table, out)
    else:
        write_canonical(table, out, rows_per_file=rows_per_file)
    typer.echo(f"{len(table)} rows: {out}")


def summary(found: "Inspection") -> "Table":
    """The numbers, one line each."""
    from rich.table import Table

    shown = ", ".join(f"{size} ({number})" for size, number in list(found.sizes.items())[:SHOWN])
    more = f" and {len(found.sizes) - SHOWN} more" if len(found.sizes) > SHOWN else ""
    lines = [
        ("format", f"{found.source}, {found.kind} rows"),
        ("rows", f"{found.looked_at:,} looked at, of {found.rows:,} in the source"),
        ("pictures", f"{found.pictures:,} readable"),
        ("prompts", f"{found.prompts:,} distinct, the longest has {found.longest_prompt_words} words"),
        ("users", f"{found.users:,}" if found.users else "not said"),
        ("sizes", shown + more if shown else "none"),
    ]
    if found.kind == "pair":
        lines.append(("labels", f"{found.ties:,} ties, {found.soft:,} soft"))
    elif found.kind == "ranking":
        of_each = ", ".join(f"{number:,} of {k}" for k, number in found.candidates.items())
        lines.append(("candidates", f"{of_each}; {found.ties:,} rankings with ties"))
    else:
        lines.append(("labels", f"{found.desirable:,} desirable, {found.looked_at - found.desirable:,} not"))
    if found.margins:
        lines.append(("margins", ", ".join(f"{name} {value:.4g}" for name, value in found.margins.items())))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines:
        table.add_row(f"[bold]{name}[/bold]", value)
    return table


def findings(found: "Inspection") -> list[str]:
    """Sentences about what one should know before training; empty where nothing stands out."""
    at_least = "" if found.near_complete else "at least "
    told = [
        (found.broken, "with a picture that cannot be used", _some(found.broken)),
        (found.same_on_both_sides, "with the same picture twice", _names(found.same_on_both_sides)),
        (found.nearly_equal_sides, "whose pictures are nearly equal", _names(found.nearly_equal_sides)),
        (found.contradictions, "that contradict another", _some(found.contradictions, " and ")),
    ]
    lines = [f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} {what}: {names}" for rows, what, names in told if rows]
    if found.near:
        groups = _names([" ~ ".join(group[:3]) for group in found.near])
        lines.append(f"{at_least}{len(found.near)} groups of rows that share nearly equal pictures: {groups}")
    if found.duplicates:
        lines.append(f"{found.duplicates} pictures have the bytes of an earlier one (usual where one is in many rows)")
    if found.empty_prompts:
        lines.append(f"{found.empty_prompts} rows have an empty prompt")
    if found.longest_prompt_words > CLIP_WORDS:
        lines.append(f"prompts of more than about {CLIP_WORDS} words are cut by CLIP's 77 tokens")
    if found.sides_differ:
        lines.append(f"{found.sides_differ} rows have pictures of different sizes; each keeps its micro-conditioning")
    if found.second_wins is not None and abs(found.second_wins - 0.5) > 0.05 and found.looked_at >= 100:
        lines.append(f"the second picture was preferred in {found.second_wins:.1%} of rows: did the side matter?")
    return lines


def _open(path: str, source: str, as_: As, images: str | None, split: str | None, max_rows: int | None) -> "RowTable":
    from mmalign.data import open_table
    from mmalign.training.config import DataConfig

    ties = "drop" if as_ is As.unary else "soft"
    fields = {"source": source, "path": path, "images": images, "split": split, "as": as_.value}
    return open_table(DataConfig.model_validate({**fields, "max_rows": max_rows, "ties": ties, "max_corrupt": 1.0}))


def _some(named: list[tuple[str, str]], between: str = ": ") -> str:
    return _names([f"{first}{between}{second}" for first, second in named])


def _names(names: list[str]) -> str:
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def _progress():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), transient=True)


app.command("balance")(balance)
