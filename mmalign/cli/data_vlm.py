"""``mmalign data`` for files of vision-language models."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from mmalign.data import RowTable
    from mmalign.inspection.vlm import VLMInspection
    from mmalign.types import VLMPair

SHOWN = 5  # findings of a kind that the terminal names; inspection.json has all


def vlm_source(path: str, source: str, split: str | None) -> str | None:
    """The VLM source that reads ``path``; None where the file is for image generators."""
    from mmalign.vlm_data import VLM_SOURCES, detect_vlm_source

    if source != "auto":
        return source if source in VLM_SOURCES else None
    found = detect_vlm_source(path, split=split)
    return found.source if found is not None else None


def open_vlm(
    path: str, source: str, *, ties: str, images: str | None, split: str | None, max_rows: int | None
) -> "RowTable[VLMPair]":
    """The table before any picture is looked at."""
    from mmalign.training.config import DataConfig
    from mmalign.vlm_data import open_table

    fields = {"source": source, "path": path, "images": images, "split": split, "max_rows": max_rows, "ties": ties}
    return open_table(DataConfig.model_validate({**fields, "max_corrupt": 1.0}))


def inspect_vlm(
    table: "RowTable[VLMPair]",
    folder: Path,
    sample: int | None,
    progress: "Callable[[], AbstractContextManager[Progress]]",
) -> None:
    """Report, numbers and findings on the terminal; all of it and a contact sheet in ``folder``."""
    from rich.console import Console

    from mmalign.inspection.vlm import inspect_vlm_table, vlm_contact_sheet
    from mmalign.pictures import save_png

    console = Console()
    total = len(table) if sample is None else min(sample, len(table))
    with progress() as bar:
        task = bar.add_task("looking at every picture", total=total)
        found = inspect_vlm_table(table, sample=sample, progress=lambda done: bar.advance(task, done))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inspection.json").write_text(json.dumps(found.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    console.print(found.report, markup=False, highlight=False)
    console.print(summary(found))
    for line in findings(found):
        console.print(f"- {line}", markup=False, highlight=False)
    sheet = vlm_contact_sheet(table) if len(table) else None
    if sheet is not None:
        console.print(f"contact sheet: {save_png(sheet, folder / 'contact_sheet.png')}", soft_wrap=True)
    console.print(f"everything found: {folder / 'inspection.json'}", soft_wrap=True)


def convert_vlm(table: "RowTable[VLMPair]", out: Path, to: str, max_corrupt: float) -> None:
    """Write the rows whose pictures are good to ``out``, in mmalign's own form or another tool's."""
    from mmalign.data import verify
    from mmalign.vlm_data import VLM_WRITERS, write_vlm_canonical

    if to != "canonical" and to not in VLM_WRITERS:
        forms = ", ".join(("canonical", *VLM_WRITERS))
        raise ValueError(f"--to {to}: rows of vision-language models are written as {forms}")
    table = verify(table, max_corrupt)
    typer.echo(str(table.report))
    if to == "canonical":
        write_vlm_canonical(table, out)
    else:
        written, left_out = VLM_WRITERS[to](table, out)
        if left_out:
            typer.echo(f"not kept, for the form has no place for them: {', '.join(left_out)} (canonical keeps all)")
        out = written
    typer.echo(f"{len(table)} rows: {out}")


def balance(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Pairs of responses, in any format that is read.")],
    out: Annotated[Path, typer.Option(help="A new .parquet file.")],
    source: Annotated[str, typer.Option(help="Format of the data; auto recognises it.")] = "auto",
) -> None:
    """Leave pairs out until chosen and rejected responses are about as long (RLAIF-V's search over length ratios)."""
    from mmalign.data.targets import new_parquet
    from mmalign.vlm_data import balanced, write_vlm_canonical

    new_parquet(out)
    table, found = balanced(open_vlm(path, source, ties="drop", images=None, split=None, max_rows=None))
    written = write_vlm_canonical(table, out, provenance={"length_ratio": found.ratio})
    typer.echo(f"{table.report}")
    typer.echo(f"{len(table)} rows: {written}")


def summary(found: "VLMInspection") -> "Table":
    """The numbers, one line each."""
    from rich.table import Table

    def told(numbers: dict[str, int], noun: str) -> str:
        return ", ".join(f"{number:,} with {k} {noun}" for k, number in numbers.items())

    sizes = ", ".join(f"{size} ({number})" for size, number in list(found.sizes.items())[:SHOWN])
    more = f" and {len(found.sizes) - SHOWN} more" if len(found.sizes) > SHOWN else ""
    lines = [
        ("format", f"{found.source}, pairs of responses"),
        ("rows", f"{found.looked_at:,} looked at, of {found.rows:,} in the source"),
        ("pictures", f"{found.pictures:,} readable, {found.distinct_pictures:,} distinct; rows: "),
        ("turns", told(found.turns, "of the user")),
        ("prompts", f"{found.prompts:,} distinct"),
        ("users", f"{found.users:,}" if found.users else "not said"),
        ("sizes", sizes + more if sizes else "none"),
        ("labels", f"{found.ties:,} ties, {found.soft:,} soft"),
    ]
    lines[2] = (lines[2][0], lines[2][1] + told(found.pictures_per_row, "pictures"))
    if found.videos:
        lines.append(("videos", f"{found.videos:,}, files not decoded"))
    for side, words in found.words.items():
        lines.append((f"{side}, words", ", ".join(f"{name} {value:.4g}" for name, value in words.items())))
    if found.chosen_longer is not None and found.changed is not None:
        lines.append(("chosen is longer", f"in {found.chosen_longer:.1%} of rows"))
        lines.append(("responses differ", f"in {found.changed:.1%} of their characters"))
    if found.margins:
        lines.append(("margins", ", ".join(f"{name} {value:.4g}" for name, value in found.margins.items())))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines:
        table.add_row(f"[bold]{name}[/bold]", value)
    return table


def findings(found: "VLMInspection") -> list[str]:
    """Sentences about what one should know before training; empty where nothing stands out."""
    told = [
        ([f"{name}: {why}" for name, why in found.source_broken], "that cannot be used"),
        ([f"{name}: {why}" for name, why in found.broken], "with a picture or video that cannot be used"),
        (found.equal_responses, "whose responses are equal"),
        ([f"{one} and {other}" for one, other in found.duplicates], "that say what another says"),
        ([f"{one} and {other}" for one, other in found.contradictions], "that contradict another"),
    ]
    lines = []
    for names, what in told:
        if names:
            more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(
                f"{len(names)} {'row' if len(names) == 1 else 'rows'} {what}: {'; '.join(names[:SHOWN])}{more}"
            )
    if found.chosen_longer is not None and found.looked_at >= 20 and abs(found.chosen_longer - 0.5) > 0.2:
        side = "chosen" if found.chosen_longer > 0.5 else "rejected"
        share = max(found.chosen_longer, 1 - found.chosen_longer)
        lines.append(
            f"the {side} response is the longer one in {share:.0%} of rows: "
            "length alone tells them apart, so watch it, or use score: mean"
        )
    if found.other_pictures_rejected:
        lines.append(f"{found.other_pictures_rejected} rows show other pictures to one side")
    for name, number in found.branches.items():
        lines.append(f"{number} rows bring their own pictures for @{name}")
    if found.weighted:
        lines.append(f"{found.weighted} rows weigh tokens")
    return lines
