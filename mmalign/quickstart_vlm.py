"""The quickstart for vision-language models: captions with and without their pictures, and what is made up afterwards.

Everything goes the way a real run goes: pairs as canonical VLM parquet, a recipe, ``mmalign.training.run.train``, the
exported weights loaded back, the same pictures for base and aligned, gold measures without any judge.
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmalign.evaluation.vlm_playground import Comparison, Measures, compare, measure, questions_of
from mmalign.playground.datasets import write_vlm_dataset
from mmalign.playground.looking import Look, looks
from mmalign.playground.vlm_pairs import VLMPairSettings
from mmalign.quickstart import fresh_folder, progress_bar
from mmalign.training.loading import load_config
from mmalign.training.run import train

MODEL = "playground/tiny-llava"
RECIPE = "playground/vlm_visual"
PICTURES = 300
SHOWN = (
    "hallucination_rate",
    "wrong_claims",
    "wrong_objects",
    "object_recall",
    "attribute_recall",
    "words",
    "accuracy",
    "prior_gap",
    "yes_ratio",
)


@dataclass(frozen=True)
class VLMQuickstart:
    """``folder``: the run; ``comparison``: what it changed on held-out pictures without habits; ``report``: HTML."""

    folder: Path
    comparison: Comparison
    report: Path | None


def quickstart_vlm(
    *,
    seed: int,
    out: Path,
    pairs_wanted: VLMPairSettings | None = None,
    pictures: int = PICTURES,
    overrides: Sequence[str] = (),
) -> VLMQuickstart:
    """Make pairs, align tiny-llava with visual negatives, measure, report; everything lands in ``out``.

    ``pairs_wanted``, ``pictures`` and ``overrides`` (of the recipe) change the sizes; the defaults are the quickstart.
    """
    started, console = time.perf_counter(), Console()
    console.rule("1 of 3: pictures with their captions and answers")
    pairs = _pairs(pairs_wanted or rows_of_quickstart(seed), out / f"vlm_pairs_seed{seed}.parquet")
    console.print(f"pairs: {pairs}", soft_wrap=True)
    console.rule("2 of 3: the same words with the picture and with a blank one")
    folder = fresh_folder(out / f"vlm_visual_seed{seed}")
    own = [f"data.path={pairs}", f"output={folder}", f"training.seed={seed}"]
    result = train(load_config(RECIPE, [*own, *overrides]), command=shlex.join(sys.argv))
    console.rule("3 of 3: base against aligned on held-out pictures without habits")
    shown = looks(pictures, seed)
    sides = [_measured(name, shown, console) for name in (MODEL, str(folder / "aligned"))]
    comparison = compare(*sides, seed=seed)
    (folder / "evaluation.json").write_text(comparison.to_json(), encoding="utf-8")
    console.print(comparison_table(comparison))
    console.print(comparison.summary(), soft_wrap=True, markup=False, highlight=False)
    where = f"; report: {result.report}" if result.report else ""
    console.print(f"{time.perf_counter() - started:.0f} s on this machine{where}", soft_wrap=True)
    _what_next(console, pairs, folder)
    return VLMQuickstart(folder, comparison, result.report)


def rows_of_quickstart(seed: int) -> VLMPairSettings:
    """Pictures without habits, with their captions and answers to any questions."""
    return VLMPairSettings(rows=2000, follow=0.0, any_question=True, model=MODEL, seed=seed)


def comparison_table(comparison: Comparison) -> Table:
    """Base, aligned and difference of the measures that say most."""
    table = Table("measure", "base", "aligned", "difference")
    for name in SHOWN:
        change = comparison.measures.get(name)
        if change is not None:
            sides = (f"{change.base.value:.3f}", f"{change.aligned.value:.3f}", str(change.difference))
            table.add_row(name.replace("_", " "), *sides)
    return table


def _pairs(settings: VLMPairSettings, path: Path) -> Path:
    """The pairs with these settings: a file made with the same ones is used again."""
    record = path.with_suffix(".json")
    wanted = json.dumps(asdict(settings), indent=1) + "\n"
    if not (path.exists() and record.exists() and record.read_text(encoding="utf-8") == wanted):
        write_vlm_dataset("vlm", settings, path)
        record.write_text(wanted, encoding="utf-8")
    return path


def _measured(name: str, shown: Sequence[Look], console: Console) -> Measures:
    from mmalign.models.vlm import load_vlm
    from mmalign.training.config import ModelConfig

    components = load_vlm(ModelConfig(name=name))
    model: Any = components.model.to(_device())
    with progress_bar(console) as bar:
        task = bar.add_task(f"asking {'base' if name == MODEL else 'aligned'}", total=questions_of(shown))
        return measure(model, components.processor, shown, progress=lambda done: bar.advance(task, done))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _what_next(console: Console, pairs: Path, folder: Path) -> None:
    anchor = "{loss: anchor, beta: 0.1}"
    commands = [
        f"mmalign train {RECIPE} data.path={pairs} 'objective=[{{loss: dpo, beta: 0.1, rejected: chosen@retrieved}}, "
        f"{anchor}]' output={folder}-retrieved",
        f"mmalign train playground/vlm_dpo data.path={pairs} output={folder}-text",
    ]
    console.print("try next:")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
