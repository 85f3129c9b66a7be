"""Objectives and heads of reward models on the playground: accuracy and calibration by gold preferences.

    python -m benchmarks.rewards_evidence
    python -m benchmarks.rewards_evidence --questions users,cycle --seeds 5

Three questions (``benchmarks.reward_questions``): raters with a taste that tiny-clip does not know, with clean labels
and with a fifth of them exchanged; two groups of users who disagree; and a preference that goes round in a circle.
Every arm starts from tiny-clip, with the last layer of each tower unlocked or, for heads of users and cycles, the head
alone, and is trained through the same recipe and measured on captions that training never saw. Models for users are
asked as a user of each group, and once more as somebody new of whom they have seen eight pairs. Runs that exist in
``--work`` are used again. Writes ``benchmarks/results/rewards_evidence.json`` and the table beside it.
"""

import argparse
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cache_tables import interval
from benchmarks.reward_questions import ARMS, QUESTIONS, Arm, Case
from mmalign.evaluation.accuracy import pairwise_accuracy
from mmalign.evaluation.calibration import calibration
from mmalign.evaluation.judged import Judged
from mmalign.rewards import find_reward
from mmalign.training.loading import load_config
from mmalign.training.run import train
from reward_models.head_reward import HeadReward
from reward_models.heads import OF_USERS

RESULTS = Path("benchmarks/results/rewards_evidence.json")
BASE = "playground/tiny-clip"
SHOTS = 8


@dataclass(frozen=True)
class Settings:
    """Sizes of the study; ``head_learning_rate``: of arms that train a head alone; ``seeds``: of data, labels, heads
    and order of rows."""

    pairs: int = 800
    judged: int = 200
    steps: int = 300
    batch: int = 16
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-3
    seeds: int = 3


def measure(reward: Any, cases: Sequence[Case]) -> dict[str, float]:
    """Accuracy and calibration of the logit that the reward gives to each case, as its user where it knows users."""
    users: list[str | None] = [None]
    if isinstance(reward, HeadReward) and reward.kind in OF_USERS:
        users = sorted({str(case.user) for case in cases})
    groups = []
    for user in users:
        asked = [case for case in cases if user is None or case.user == user]
        one = reward if user is None else reward.for_user(user)
        groups += judged(logits(one, asked), asked)
    accuracy, told = pairwise_accuracy(groups), calibration(groups)
    return {
        "accuracy": accuracy.value,
        "ece": told.as_given.ece,
        "log_loss": told.as_given.log_loss,
        "temperature": told.fitted.temperature,
        "least_log_loss": float(np.mean([_entropy(case.p) for case in cases])),
    }


def logits(reward: Any, cases: Sequence[Case]) -> list[float]:
    """log-odds that the first picture of each case is preferred."""
    prompts = [case.prompt for case in cases]
    left, right = ([case.images[side] for case in cases] for side in (0, 1))
    if isinstance(reward, HeadReward):
        return reward.compare(prompts, left, right).tolist()
    return (reward.score(prompts, left) - reward.score(prompts, right)).tolist()


def judged(scores: Sequence[float], cases: Sequence[Case]) -> list[Judged]:
    """Logits as pairs whose second picture scores 0."""
    return [
        Judged(case.prompt, [case.p, 1 - case.p], [score, 0.0], preference=case.p)
        for case, score in zip(cases, scores, strict=True)
    ]


def few_shot(reward: HeadReward, cases: Sequence[Case]) -> float:
    """Accuracy as somebody new of each group, known by its first pairs, on the others."""
    groups = []
    for user in sorted({str(case.user) for case in cases}):
        of = [case for case in cases if case.user == user]
        shown, asked = of[:SHOTS], of[SHOTS:]
        sides = [[case.images[int((case.p < 0.5) != second)] for case in shown] for second in (False, True)]
        new = reward.new_user([case.prompt for case in shown], *sides)
        groups += judged(logits(new, asked), asked)
    return pairwise_accuracy(groups).value


def _entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def run_arm(
    arm: Arm, noise: float, seed: int, settings: Settings, work: Path, cases: Sequence[Case]
) -> dict[str, float]:
    """Train, or find, one model, and measure it."""
    folder = work / f"{arm.question}_{arm.name}_{round(100 * noise)}_{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    data = work / f"{arm.question}_{arm.labels}_{round(100 * noise)}_{seed}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    if not data.is_file():
        partial = data.with_name(f"partial_{data.name}")
        QUESTIONS[arm.question].write(partial, settings.pairs, arm.labels, noise, seed)
        partial.replace(data)
    layers = 0 if arm.frozen else 1
    changes = {
        "objective": json.dumps([arm.term]),
        "reward": json.dumps({"text_layers": layers, "image_layers": layers, "head": arm.head}),
        "data.path": data,
        "data.source": "canonical" if arm.labels == "ranking" else "pickapic",
        "data.ties": "soft" if arm.labels == "share" else "drop",
        "data.held_out": 0,
        "evaluation.every": "null",
        "training.steps": settings.steps,
        # Four candidates are two pairs' worth of pictures.
        "training.batch_size": settings.batch // 2 if arm.labels == "ranking" else settings.batch,
        "training.learning_rate": settings.head_learning_rate if arm.frozen else settings.learning_rate,
        "training.checkpoint_every": "null",
        "training.seed": seed,
        "output": folder / "run",
    }
    train(load_config("playground/reward_bt", [f"{key}={value}" for key, value in changes.items()]))
    reward: Any = find_reward("clip-reward", weights=folder / "run")
    measured = measure(reward, cases)
    if isinstance(reward, HeadReward) and reward.kind in OF_USERS:
        measured["few_shot"] = few_shot(reward, cases)
    done.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    return measured


def render_table(results: dict[str, Any]) -> str:
    """Markdown: a table per question, a row per arm, means over seeds with 95 % t intervals."""
    settings = results["settings"]
    changed = {name: settings[name] for name, default in asdict(Settings()).items() if settings[name] != default}
    if set(results["questions"]) != set(QUESTIONS):
        changed["questions"] = ",".join(results["questions"])
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    lines = [
        "# Objectives and heads of reward models on the playground",
        "",
        f"`python -m benchmarks.rewards_evidence{options}` at commit `{results['commit'][:12]}`, torch "
        f"{results['torch']}. tiny-clip after {settings['steps']} steps of {settings['batch']} pairs out of "
        f"{settings['pairs']}; {settings['judged']} pairs of held-out captions. Means over seeds with 95 % t "
        "intervals.",
    ]
    for question, told in results["questions"].items():
        lines += ["", f"## {question}", ""]
        lines += [
            "| objective | labels | exchanged | accuracy | new user, 8 pairs | calibration error | log-loss | T |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for arm in told:
            cells = [_cell(arm, name) for name in ("accuracy", "few_shot", "ece", "log_loss", "temperature")]
            lines.append(f"| {arm['name']} | {arm['labels']} | {arm['noise']:.0%} | {' | '.join(cells)} |")
        least = np.mean([run["least_log_loss"] for arm in told for run in arm["seeds"].values()])
        lines += ["", f"Least possible log-loss: {least:.3f}. T: the temperature that fits best."]
    return "\n".join([*lines, ""])


def _cell(arm: dict[str, Any], name: str) -> str:
    values = [run[name] for run in arm["seeds"].values() if name in run]
    return interval(values) if values else ""


def main() -> None:
    """Every field of :class:`Settings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rewards_evidence"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="with commas between them")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    work, out, chosen = values.pop("work"), values.pop("out"), values.pop("questions").split(",")
    unknown = [name for name in chosen if name not in QUESTIONS]
    if unknown:
        parser.error(f"--questions: there is no {', '.join(unknown)}; choose from {', '.join(QUESTIONS)}")
    run_study(Settings(**values), chosen, work, out)


def run_study(settings: Settings, questions: Sequence[str], work: Path, out: Path) -> None:
    """Every arm of the questions, seed by seed; the tables are written after each seed."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    found: dict[str, dict[tuple[str, str, float], dict[str, Any]]] = {question: {} for question in questions}
    for seed in range(settings.seeds):
        for question, arms in found.items():
            cases = QUESTIONS[question].cases(settings.judged, seed)
            base = measure(find_reward("clip-reward", weights=BASE), cases)
            arms.setdefault(("untrained", "none", 0.0), {})[str(seed)] = base
            for arm in (arm for arm in ARMS if arm.question == question):
                for noise in arm.noises:
                    got = run_arm(arm, noise, seed, settings, work, cases)
                    arms.setdefault((arm.name, arm.labels, noise), {})[str(seed)] = got
                    print(seed, question, noise, arm.name, got, flush=True)
        results = {
            "settings": asdict(settings),
            "commit": commit,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "questions": {
                question: [
                    {"name": name, "labels": labels, "noise": noise, "seeds": seeds}
                    for (name, labels, noise), seeds in arms.items()
                ]
                for question, arms in found.items()
            },
        }
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(render_table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
