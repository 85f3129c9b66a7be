"""``mmalign cache``: fill what a run keeps on disk before it trains, and see what is there."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.terminal import hush_progress_bars, is_main_process
from mmalign.training.loading import load_config

app = typer.Typer(
    no_args_is_help=True, help="Fill what runs keep on disk (latents, texts, reference scores), or show it."
)


@app.command("build")
def build(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name from [bold]mmalign recipes list[/bold].")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe; train with the same ones."),
    ] = None,
) -> None:
    """Make what [bold]mmalign train RECIPE[/bold] would take from disk.

    With data.cache=disk latents and text embeddings, with reference.kind=cached reference.path=FOLDER the scores of the
    reference. Several processes may build one cache, also under torchrun (reference scores: as many as will train); one
    that was interrupted goes on where it was.
    """
    config = load_config(recipe, overrides or [])

    from mmalign.training.cache_run import build_cache

    hush_progress_bars()
    roots = build_cache(config)
    if is_main_process():
        for root in roots:
            info(root)


@app.command("info")
def info(folder: Annotated[Path, typer.Argument(help="data.cache_folder or reference.path.")]) -> None:
    """What a cache holds, by model, settings and table, and how to clear it."""
    from rich.console import Console
    from rich.table import Table

    from mmalign.training.cache_run import contents

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give data.cache_folder of a run, or the folder cache beside it")
    table = Table("folder", "holds", "size", "made with", box=None)
    lines = contents(folder)
    for line in lines:
        table.add_row(*line)
    Console().print(table if lines else f"{folder} holds no cache")
    if lines:
        place = folder if lines[0][0] == folder.name else folder / "NAME"
        typer.echo(f"Any of these folders may be deleted while no run uses it: rm -r {place}")
