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
    """Align an embedded model with gold labels and measure what it gained; no download.

    image: tiny-sdxl on its own ranked samples, by win rate. vlm: tiny-llava on captions with their picture and
    with a blank one, by how much of what it says is made up.
    """
    hush_progress_bars()
    if task is Task.vlm:
        if method is not Method.dpo:
            raise ValueError(f"--method {method.value} is for image generators; --task vlm takes --method dpo")
        from mmalign.quickstart_vlm import quickstart_vlm

        quickstart_vlm(seed=seed, out=out)
        return

    from mmalign.quickstart import quickstart as run

    run(method=method.value, seed=seed, out=out)
