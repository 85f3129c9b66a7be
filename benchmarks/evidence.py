"""What each method does to the playground's model, by gold labels: ``make evidence``.

For every seed: pairs the model makes itself, each method trained on those same pairs with its recipe, and base and
aligned models sampled on the same held-out captions and noise. Label noise exchanges 30 % of the labels; gold labels
judge. Slow and resumable: pairs, trained weights and scores that exist are used again. Writes
``benchmarks/results/evidence.json`` and the tables of ``benchmarks/results/evidence.md``.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.evidence_tables import write_tables
from mmalign.evaluation import OracleScorer
from mmalign.playground.on_policy import PairSettings
from mmalign.playground.pairs import exchange_labels
from mmalign.playground.scene import held_out_prompts
from mmalign.quickstart import Measure, sample_held_out, write_own_pairs
from mmalign.training.loading import load_config
from mmalign.training.run import train

RESULTS = Path("benchmarks/results")
FLIP_RATE = 0.3
PUBLISHED_MAPO = ("objective.0.beta=0.1", "objective.0.num_timesteps=1000")
# name -> (recipe, share of exchanged labels, seeds, changes to the recipe)
ARMS: dict[str, tuple[str, float, tuple[int, ...], tuple[str, ...]]] = {
    "dpo": ("playground/dpo", 0.0, (0, 1, 2, 3, 4), ()),
    "mapo": ("playground/mapo", 0.0, (0, 1, 2, 3, 4), ()),
    "sft": ("playground/sft", 0.0, (0, 1, 2), ()),
    "dpo, 30 % flipped": ("playground/dpo", FLIP_RATE, (0, 1, 2), ()),
    "robust_dpo, 30 % flipped": ("playground/robust_dpo", FLIP_RATE, (0, 1, 2), ()),
    "mapo, published scale": ("playground/mapo", 0.0, (0, 1, 2), PUBLISHED_MAPO),
}
# The same models as they are mostly used: with classifier-free guidance.
GUIDED, GUIDED_ARMS, GUIDED_SEEDS = Measure(seeds=1, guidance_scale=3.0), ("dpo", "mapo"), (0, 1, 2)


def run_seed(seed: int, work: Path, console: Console, arms: Sequence[str] = tuple(ARMS)) -> dict[str, Any]:
    """Scores of the base and of every arm that has this seed: arm -> {"share", "all_correct"} [prompts][seeds]."""
    measure = Measure()
    folder = work / f"seed{seed}"
    scores = {"base": _scores(folder / "base.json", None, measure, seed, console)}
    for arm, (recipe, flip_rate, seeds, changes) in ARMS.items():
        if seed not in seeds or arm not in arms:
            continue
        name = arm.replace(",", "").replace(" ", "_").replace("%", "percent")
        pairs = folder / "pairs.parquet"
        write_own_pairs(PairSettings(seed=seed), pairs, console)
        if flip_rate:
            right, pairs = pairs, folder / "pairs_flipped.parquet"
            exchange_labels(right, pairs, flip_rate, seed)
        run = folder / name
        if not (run / "report.html").exists():
            overrides = [f"data.path={pairs}", f"output={run}", f"training.seed={seed}", *changes]
            started = bool(list(run.glob("checkpoints/step_*")))
            train(load_config(recipe, overrides), resume=started, command="make evidence")
        scores[arm] = _scores(folder / f"{name}.json", run / "aligned", measure, seed, console)
    for model in ("base", *GUIDED_ARMS) if seed in GUIDED_SEEDS and set(GUIDED_ARMS) <= set(arms) else ():
        weights = None if model == "base" else folder / model / "aligned"
        scores[f"{model}, guidance 3"] = _scores(folder / f"{model}_guided.json", weights, GUIDED, seed, console)
    return scores


def _scores(path: Path, weights: Path | None, measure: Measure, seed: int, console: Console) -> dict[str, Any]:
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    pictures = sample_held_out(weights, measure, seed, console)
    prompts = [prompt for prompt in held_out_prompts("single", measure.prompts) for _ in range(measure.seeds)]
    judged = OracleScorer()(prompts, [picture for row in pictures for picture in row])
    shape = (measure.prompts, measure.seeds)
    assert judged.attributes is not None
    complete = [float(all(attributes.values())) for attributes in judged.attributes]
    scores = {
        "share": np.reshape(judged.scores, shape).round(4).tolist(),
        "all_correct": np.reshape(complete, shape).tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores), encoding="utf-8")
    return scores


def _circumstances() -> dict[str, Any]:
    import diffusers
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": "make evidence",
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "measure": asdict(Measure()),
        "pairs": asdict(PairSettings()),
    }


def main() -> None:
    """Run the seeds asked for, one at a time; rewrite results and tables after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, seeds = Console(), {}
    arguments.results.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        console.rule(f"seed {seed}")
        seeds[str(seed)] = run_seed(seed, arguments.work, console, arguments.arms)
        results = {**_circumstances(), "seeds": seeds}
        (arguments.results / "evidence.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
        console.print(
            write_tables(arguments.results / "evidence.json", arguments.results / "evidence.md"), markup=False
        )


if __name__ == "__main__":
    main()
