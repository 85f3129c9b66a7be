"""Losses of reward models on the playground: accuracy and calibration by gold preferences, with and without noise.

    python -m benchmarks.rewards_evidence

Two renderings of a prompt, each with some attributes changed; a rater prefers the first with probability
sigma((share_0 - share_1) / 0.15), share = the oracle's share of right attributes. Five raters vote on every pair to
train on. Bradley-Terry sees who won the vote (a hard label), the cross-entropy and the KL divergence see the share of
votes. With noise, a fifth of the pairs have their labels exchanged. Measured on captions that training never saw,
against the raters' true probability. Runs that exist in ``--work`` are used again. Writes
``benchmarks/results/rewards_evidence.json`` and the table beside it.
"""

import argparse
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.cache_tables import interval
from mmalign.evaluation.accuracy import pairwise_accuracy
from mmalign.evaluation.calibration import calibration
from mmalign.evaluation.judged import Judged
from mmalign.playground.captions import parse
from mmalign.playground.oracle import judge_batch
from mmalign.playground.pairs import make_pairs, write_pickapic
from mmalign.playground.renderer import render
from mmalign.playground.scene import Scene, arrange, held_out_prompts, sample_scene, training_prompts
from mmalign.rewards import RewardModel, find_reward
from mmalign.training.loading import load_config
from mmalign.training.run import train

RESULTS = Path("benchmarks/results/rewards_evidence.json")
BASE = "playground/tiny-clip"
CHANGED, TEMPERATURE, RATERS = 0.35, 0.15, 5
ARMS = {"bradley_terry": "hard", "preference_ce": "soft", "preference_kl": "soft"}
NOISES = (0.0, 0.2)


@dataclass(frozen=True)
class Settings:
    """Sizes of the study; ``seeds``: of data, labels and order of rows."""

    pairs: int = 500
    judged: int = 250
    steps: int = 60
    batch: int = 16
    learning_rate: float = 3e-4
    seeds: int = 3


def picture(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """``scene`` with each of its attributes drawn anew with probability ``CHANGED``."""
    other = sample_scene(rng, "single", held_out=None)
    thing, drawn = scene.things[0], other.things[0]
    changes = {name: getattr(drawn, name) for name in ("shape", "colour", "size") if rng.random() < CHANGED}
    kept = {name: getattr(other, name) for name in ("background", "style") if rng.random() < CHANGED}
    return Image.fromarray(render(arrange(replace(scene, things=(replace(thing, **changes),), **kept), rng), 64))


def samples(prompts: Iterable[str], rng: np.random.Generator) -> list[tuple[str, list[Image.Image]]]:
    """Two pictures for each prompt."""
    return [(prompt, [picture(parse(prompt), rng) for _ in range(2)]) for prompt in prompts]


def write_training_pairs(settings: Settings, seed: int, labels: str, noise: float, file: Path) -> None:
    """Pick-a-Pic rows whose labels are the share of votes (``soft``) or who won the vote (``hard``)."""
    rng = np.random.default_rng([seed, 7])
    prompts = training_prompts("single", settings.pairs, seed)
    rows = make_pairs(samples(prompts, rng), soft=True, temperature=TEMPERATURE, seed=seed)
    exchanged = set(rng.permutation(len(rows))[: round(noise * len(rows))].tolist())
    for index, row in enumerate(rows):
        share = rng.binomial(RATERS, row["label_0"]) / RATERS
        share = 1 - share if index in exchanged else share
        row["label_0"] = share if labels == "soft" else float(share > 0.5)
        row["label_1"] = 1 - row["label_0"]
        row["best_image_uid"] = row["image_0_uid" if share > 0.5 else "image_1_uid"]
    write_pickapic(rows, file)


def measure(reward: RewardModel, settings: Settings, seed: int) -> dict[str, float]:
    """Accuracy (gold order) and calibration (gold probability) on held-out captions."""
    groups = []
    for prompt, images in samples(held_out_prompts("single", settings.judged, 0), np.random.default_rng([seed, 11])):
        gold = [judgement.share for judgement in judge_batch(images, [prompt] * 2)]
        scores = reward.score([prompt] * 2, images).tolist()
        p = 1 / (1 + math.exp(-(gold[0] - gold[1]) / TEMPERATURE))
        groups.append(Judged(prompt, gold, scores, preference=p))
    accuracy, told = pairwise_accuracy(groups), calibration(groups)
    best = float(np.mean([_cross_entropy(group.preference or 0.0) for group in groups]))
    return {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low or math.nan,
        "accuracy_high": accuracy.high or math.nan,
        "ece": told.as_given.ece,
        "log_loss": told.as_given.log_loss,
        "least_log_loss": best,
        "temperature": told.fitted.temperature,
    }


def _cross_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def run_arm(loss: str, noise: float, seed: int, settings: Settings, work: Path) -> dict[str, float]:
    """Train, or find, one model, and measure it."""
    folder = work / f"{loss}_{round(100 * noise)}_{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    write_training_pairs(settings, seed, ARMS[loss], noise, folder / "pairs.parquet")
    changes = {
        "objective.0.loss": loss,
        "data.path": folder / "pairs.parquet",
        "data.ties": "drop" if ARMS[loss] == "hard" else "soft",
        "data.held_out": 0,
        "evaluation.every": "null",
        "training.steps": settings.steps,
        "training.batch_size": settings.batch,
        "training.learning_rate": settings.learning_rate,
        "training.checkpoint_every": "null",
        "training.seed": seed,
        "output": folder / "run",
    }
    train(load_config("playground/reward_bt", [f"{key}={value}" for key, value in changes.items()]))
    measured = measure(find_reward("clip-reward", weights=folder / "run"), settings, seed)
    done.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    return measured


def render_table(results: dict[str, Any]) -> str:
    """Markdown: a row per arm, means over seeds with 95 % t intervals."""
    settings = results["settings"]
    changed = {name: settings[name] for name, default in asdict(Settings()).items() if settings[name] != default}
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    lines = [
        "# Losses of reward models on the playground",
        "",
        f"`python -m benchmarks.rewards_evidence{options}` at commit `{results['commit'][:12]}`, "
        f"torch {results['torch']}. "
        f"tiny-clip after {settings['steps']} steps of {settings['batch']} pairs; {settings['judged']} pairs of "
        "held-out captions, measured against the probability with which a rater prefers the first picture. Means "
        "over seeds with 95 % t intervals.",
        "",
        "| loss | labels | exchanged | seeds | accuracy | calibration error | log-loss | fitted temperature |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in results["arms"]:
        runs = list(arm["seeds"].values())
        cells = [_cell([run[name] for run in runs]) for name in ("accuracy", "ece", "log_loss", "temperature")]
        label = {"hard": "winner of 5 votes", "soft": "share of 5 votes"}.get(ARMS.get(arm["loss"], ""), "none")
        lines.append(f"| {arm['loss']} | {label} | {arm['noise']:.0%} | {len(runs)} | {' | '.join(cells)} |")
    least = [run["least_log_loss"] for arm in results["arms"] for run in arm["seeds"].values()]
    lines += ["", f"The least possible log-loss, that of the true probabilities, is {np.mean(least):.3f}.", ""]
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    return interval(values) if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    """Every field of :class:`Settings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rewards_evidence"))
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    work, settings = values.pop("work"), Settings(**values)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    arms: dict[tuple[str, float], dict[str, Any]] = {}
    for seed in range(settings.seeds):
        base = measure(find_reward("clip-reward", weights=BASE), settings, seed)
        arms.setdefault(("untrained", 0.0), {})[str(seed)] = base
        for noise in NOISES:
            for loss in ARMS:
                arms.setdefault((loss, noise), {})[str(seed)] = run_arm(loss, noise, seed, settings, work)
                print(seed, noise, loss, arms[loss, noise][str(seed)], flush=True)
        results = {
            "settings": asdict(settings),
            "commit": commit,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "arms": [{"loss": loss, "noise": noise, "seeds": seeds} for (loss, noise), seeds in arms.items()],
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(render_table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
