"""The quickstart: sample pairs from the embedded model, align it, and measure what changed on captions it never saw.

Everything goes the way a real run goes: pairs as Pick-a-Pic parquet, a recipe, ``mmalign.training.run.train``, the
exported weights loaded back, the same prompts and seeds for base and aligned, gold labels from the oracle.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmalign.evaluation import ImageEvaluation, OracleScorer, evaluate_images
from mmalign.models import generate, load_aligned
from mmalign.pictures import comparison_grid, save_png
from mmalign.playground.on_policy import PairSettings, pairs_written, sample_groups, write_pairs
from mmalign.playground.scene import held_out_prompts
from mmalign.report import write_report
from mmalign.training.loading import load_config
from mmalign.training.run import train

MODEL = "playground/tiny-sdxl"
BATCH = 64


@dataclass(frozen=True)
class Measure:
    """How base and aligned are compared: captions of combinations that neither pretraining nor alignment has seen.

    Without classifier-free guidance by default: what is measured is then the model that the loss trained, not the
    model extrapolated away from its unconditional self. ``benchmarks/evidence.py`` measures both.
    """

    prompts: int = 200
    seeds: int = 2
    steps: int = 12
    guidance_scale: float = 1.0


def quickstart(
    *,
    method: str,
    seed: int,
    out: Path,
    pairs_wanted: PairSettings | None = None,
    measure: Measure | None = None,
    overrides: Sequence[str] = (),
) -> ImageEvaluation:
    """Sample, label, align with ``method`` (``dpo`` or ``mapo``), evaluate, report; everything lands in ``out``.

    ``pairs_wanted``, ``measure`` and ``overrides`` (of the recipe) change the sizes; the defaults are the quickstart.
    """
    started, console, measure = time.perf_counter(), Console(), measure or Measure()
    console.rule(f"1 of 3: pairs that {MODEL} makes itself, ranked by the oracle")
    wanted = pairs_wanted or PairSettings(model=MODEL, seed=seed)
    pairs = write_own_pairs(wanted, out / f"pairs_seed{seed}.parquet", console)
    console.rule(f"2 of 3: alignment with {method}")
    folder = fresh_folder(out / f"{method}_seed{seed}")
    own = [f"data.path={pairs}", f"output={folder}", f"training.seed={seed}"]
    result = train(load_config(f"playground/{method}", [*own, *overrides]), command=shlex.join(sys.argv))
    console.rule("3 of 3: base against aligned on held-out captions, same seeds")
    evaluation = evaluate(folder, measure, seed, console)
    report = write_report(result.folder)
    evaluation.print(console)
    console.print(f"{time.perf_counter() - started:.0f} s on this machine; report: {report}", soft_wrap=True)
    _what_next(console, method, pairs, folder, seed)
    return evaluation


def evaluate(folder: Path, measure: Measure, seed: int, console: Console) -> ImageEvaluation:
    """Sample base and exported weights on the same prompts and seeds; writes evaluation.json and before_after.png."""
    prompts = held_out_prompts("single", measure.prompts)
    pictures = {
        "base": sample_held_out(MODEL, None, measure, seed, console),
        "aligned": sample_held_out(MODEL, folder / "aligned", measure, seed, console),
    }
    evaluation = evaluate_images(pictures["base"], pictures["aligned"], prompts, OracleScorer(), seed=seed)
    (folder / "evaluation.json").write_text(evaluation.to_json(), encoding="utf-8")
    shown = slice(0, 12)
    grid = comparison_grid(
        [row[:1] for row in pictures["base"][shown]], [row[:1] for row in pictures["aligned"][shown]], prompts[shown]
    )
    save_png(grid, folder / "before_after.png")
    return evaluation


def write_own_pairs(settings: PairSettings, path: Path, console: Console) -> Path:
    """Pairs that the model makes itself, ranked by the oracle; a file made with the same settings is used again."""
    rows = pairs_written(settings, path)
    if rows is not None:
        console.print(f"{path} holds {rows} pairs made with these settings already; they are used again")
        return path
    pipe = _device(load_aligned(settings.model))
    with progress_bar(console) as bar:
        task = bar.add_task("sampling pairs", total=settings.pictures)
        groups = sample_groups(pipe, settings, progress=lambda done: bar.advance(task, done), batch_size=BATCH)
    rows = write_pairs(groups, settings, path)
    console.print(f"{rows} pairs of {settings.prompts} prompts, the rest had no better and worse: {path}")
    return path


def sample_held_out(
    model: str, folder: Path | None, measure: Measure, seed: int, console: Console
) -> list[list[Image.Image]]:
    """Pictures [prompts][seeds] of ``model`` (``folder`` None) or of exported weights, on held-out captions."""
    pipe = _device(load_aligned(model, folder))
    prompts = held_out_prompts("single", measure.prompts)
    repeated = [prompt for prompt in prompts for _ in range(measure.seeds)]
    first = seed * 1_000_000
    with progress_bar(console) as bar:
        task = bar.add_task(f"sampling {'base' if folder is None else 'aligned'}", total=len(repeated))
        pictures = generate(
            pipe,
            repeated,
            list(range(first, first + len(repeated))),
            steps=measure.steps,
            guidance_scale=measure.guidance_scale,
            batch_size=BATCH,
            progress=lambda done: bar.advance(task, done),
        )
    return [pictures[start : start + measure.seeds] for start in range(0, len(pictures), measure.seeds)]


def _device(pipe: Any) -> Any:
    import torch

    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def progress_bar(console: Console) -> Progress:
    """What is sampled, how far it is, and how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def fresh_folder(folder: Path) -> Path:
    """``folder``, or the first free ``folder-2``, ``folder-3``, ...: an earlier run is never overwritten."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _what_next(console: Console, method: str, pairs: Path, folder: Path, seed: int) -> None:
    other = "mapo" if method == "dpo" else "dpo"
    prompt = "a large striped red circle on a white background"
    commands = [
        f"mmalign quickstart --method {other} --seed {seed} --out {pairs.parent}",
        f"mmalign train playground/{method} data.path={pairs} training.steps=120 output={folder}-longer",
        f"mmalign generate --base {MODEL} --aligned {folder} --prompt {shlex.quote(prompt)} --seeds 0,1,2,3 "
        f"--out {folder}-pictures",
    ]
    console.print("try next:")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
