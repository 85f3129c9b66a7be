"""Tables and figure of the playground evidence, from the stored scores alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.evaluation import mean_difference, paired_win_rate

COMPARISONS = (
    ("base", "dpo"),
    ("base", "mapo"),
    ("base", "sft"),
    ("sft", "dpo"),
    ("sft", "mapo"),
    ("base", "dpo, 30 % flipped"),
    ("base", "robust_dpo, 30 % flipped"),
    ("dpo, 30 % flipped", "robust_dpo, 30 % flipped"),
    ("base", "mapo, published scale"),
    ("base, guidance 3", "dpo, guidance 3"),
    ("base, guidance 3", "mapo, guidance 3"),
)


def compare(results: dict[str, Any], against: str, arm: str) -> dict[str, Any] | None:
    """Win rate and all-correct of ``arm`` against ``against``: per seed, and pooled with prompts as clusters."""
    seeds = [seed for seed, scores in results["seeds"].items() if against in scores and arm in scores]
    if not seeds:
        return None

    def pooled(model: str, what: str) -> np.ndarray:
        return np.concatenate([np.asarray(results["seeds"][seed][model][what]) for seed in seeds], axis=1)

    per_seed = {
        seed: paired_win_rate(results["seeds"][seed][against]["share"], results["seeds"][seed][arm]["share"])
        for seed in seeds
    }
    return {
        "per_seed": per_seed,
        "win_rate": paired_win_rate(pooled(against, "share"), pooled(arm, "share")),
        "all_correct": mean_difference(pooled(against, "all_correct"), pooled(arm, "all_correct")),
    }


def write_tables(source: Path, target: Path) -> str:
    """Markdown of every comparison that has data, written beside the scores and returned."""
    results = json.loads(source.read_text(encoding="utf-8"))
    measure = results["measure"]
    lines = [
        "# Playground evidence",
        "",
        f"`{results['command']}` at commit `{results['commit'][:12]}`, {results['machine']}, "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + f". {measure['prompts']} held-out captions x {measure['seeds']} pictures per seed (one with "
        "guidance 3), same noise on both sides; "
        "score = share of right attributes by the oracle, ties count one half; 95 % intervals resample captions.",
        "",
        "| model | against | seeds | win rate, pooled | per seed | all correct, pooled |",
        "|---|---|---|---|---|---|",
    ]
    for against, arm in COMPARISONS:
        found = compare(results, against, arm)
        if found is None:
            continue
        change = found["all_correct"]
        seeds = "<br>".join(f"{seed}: {rate}" for seed, rate in found["per_seed"].items())
        lines.append(
            f"| {arm} | {against} | {len(found['per_seed'])} | {found['win_rate']} | {seeds} "
            f"| {change.base.value:.3f} -> {change.aligned.value:.3f} ({change.difference}) |"
        )
    text = "\n".join(lines) + "\n"
    target.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    folder = Path("benchmarks/results")
    print(write_tables(folder / "evidence.json", folder / "evidence.md"))
