"""``mmalign quickstart``: align the embedded model on this machine in minutes, and see what it gained."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.terminal import hush_progress_bars


class Task(StrEnum):
    """What is aligned."""

    image = "image"
    vlm = "vlm"


class Method(StrEnum):
    """How it is aligned."""

    dpo = "dpo"
    mapo = "mapo"


def quickstart(
    task: Annotated[Task, typer.Option(help="What to align.")] = Task.image,
    method: Annotated[Method, typer.Option(help="Diffusion-DPO, or MaPO, which needs no reference.")] = Method.dpo,
    seed: Annotated[int, typer.Option(min=0, help="Seed of pairs, training and evaluation.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pairs, weights and report.")] = Path("runs/quickstart"),
) -> None:
    """Align the embedded tiny-sdxl with its own labelled samples and measure the win rate; no download."""
    if task is Task.vlm:
        raise ValueError("--task vlm is not available yet: this version aligns image generators only. Use --task image")

    from mmalign.quickstart import quickstart as run

    hush_progress_bars()
    run(method=method.value, seed=seed, out=out)
