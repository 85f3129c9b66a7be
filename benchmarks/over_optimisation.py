"""A narrow reward followed too far on the playground, and when the monitor says so.

    python -m benchmarks.over_optimisation

tiny-sdxl's own samples are labelled by a reward that nobody means (``--proxy``, the saturation of the picture) and DPO
follows it far longer than its recipe. Every ``--every`` steps the run samples the same ``--watched`` captions; the
proxy and the oracle, which training never sees, score them. ``training.guard.over_optimisation`` stops the run; it is
then resumed with a warning instead, to show what comes after. Beside it the recipe itself on gold labels, where the
guard has to keep quiet. What the weights of the end and of the best step before the alarm are worth is measured on
other captions. Runs that exist in ``--work`` are used again. Writes ``benchmarks/results/over_optimisation.json`` and
the table beside it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import recording
from benchmarks.labelled import label
from mmalign.evaluation import mean_difference, paired_win_rate
from mmalign.playground.on_policy import PairSettings
from mmalign.playground.scene import held_out_prompts
from mmalign.quickstart import MODEL, Measure, sample_held_out
from mmalign.rewards import find_reward
from mmalign.training.guards import GuardStop
from mmalign.training.loading import load_config
from mmalign.training.run import train

OUT = recording.RESULTS / "over_optimisation.json"
MEASURED = ("saturation", "contrast", "sharpness", "diversity")
ALARM = "guard.over_optimisation"


@dataclass(frozen=True)
class Settings:
    """``limit``: how far the held-out reward may fall below its best, in shares of right attributes.

    ``gold_steps``: of the run on gold labels, by default those of the recipe.
    """

    proxy: str = "saturation"
    seeds: int = 3
    steps: int = 300
    learning_rate: float = 1e-4
    gold_steps: int = 60
    every: int = 20
    watched: int = 64
    limit: float = 0.05
    prompts: int = 320
    judged: int = 200

    @property
    def measure(self) -> Measure:
        """How base and aligned are compared."""
        return Measure(prompts=self.judged)


def study(settings: Settings, seed: int, work: Path, console: Console) -> dict[str, Any]:
    """Both runs of one seed, with what was measured of them."""
    pairs = PairSettings(model=MODEL, prompts=settings.prompts, seed=seed)
    done: dict[str, Any] = {}
    for name, reward in (("narrow", settings.proxy), ("gold", "oracle")):
        data = label(["--reward", reward], pairs, work, work / f"{name}.parquet", console)
        changes = [*_watch(settings), "data.source=canonical", f"data.path={data}", f"training.seed={seed}"]
        if name == "narrow":
            changes += [f"training.steps={settings.steps}", f"training.learning_rate={settings.learning_rate}"]
        else:
            changes.append(f"training.steps={settings.gold_steps}")
        run = work / name
        _follow(run, [*changes, f"output={run}"])
        done[name] = told = read_run(run)
        done[name]["end"] = _scores(run / "aligned", settings, seed, work / f"{name}_end.json", console)
        if name == "narrow" and told["alarm"] is not None and told["best"] > 0:
            best = work / "best"  # the rate is constant, so a shorter run is the beginning of the longer one
            _follow(best, [*changes, f"output={best}", f"training.steps={told['best']}"])
            done[name]["best_scores"] = _scores(best / "aligned", settings, seed, work / "best.json", console)
    done["base"] = _scores(None, settings, seed, work / "base.json", console)
    return done


def _watch(settings: Settings) -> list[str]:
    captions = held_out_prompts("single", settings.judged + settings.watched)[settings.judged :]
    rewards = {"proxy_reward": settings.proxy, "held_out_reward": "oracle"}
    pictures = {"every": settings.every, "prompts": captions, "inference_steps": 12, "guidance_scale": 1.0, **rewards}
    guard = {"over_optimisation": settings.limit}
    return [f"evaluation.pictures={json.dumps(pictures)}", f"training.guard={json.dumps(guard)}"]


def _follow(run: Path, changes: Sequence[str]) -> None:
    """Train until the guard stops it, and then regardless, as its message says; what was begun goes on."""
    if (run / "aligned").exists():
        return
    regardless = [*changes, "training.guard.action=warn"]
    started = bool(list(run.glob("checkpoints/step_*")))
    try:
        train(load_config("playground/dpo", changes), resume=started)
    except GuardStop as stop:
        print(stop, flush=True)
        train(load_config("playground/dpo", regardless), resume=True)


def read_run(run: Path) -> dict[str, Any]:
    """``curve``: what was measured of the watched captions, ``alarm``: the step of the guard's first word, ``best``:
    the step with the highest held-out reward until then, of those whose pictures were sampled."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("step", "proxy_reward", "held_out_reward", *MEASURED)
    drawn = {line["step"]: {name: line[name] for name in names} for line in lines if line.get("split") == "pictures"}
    curve = [drawn[step] for step in sorted(drawn)]
    alarms = [line["step"] for line in lines if line.get("kind") == ALARM]
    alarm = min(alarms, default=None)
    before = [point for point in curve if alarm is None or point["step"] <= alarm]
    best = max(before, key=lambda point: point["held_out_reward"])["step"]
    return {"curve": curve, "alarm": alarm, "best": best}


def _scores(weights: Path | None, settings: Settings, seed: int, kept: Path, console: Console) -> dict[str, Any]:
    """[captions][pictures] by the oracle and by the proxy."""
    if not kept.exists():
        pictures = sample_held_out(MODEL, weights, settings.measure, seed, console)
        prompts = held_out_prompts("single", settings.judged)
        columns = {}
        for name, reward in (("gold", "oracle"), ("proxy", settings.proxy)):
            judge = find_reward(reward)
            rows = [judge.score([prompt] * len(row), row) for prompt, row in zip(prompts, pictures, strict=True)]
            columns[name] = [row.double().numpy().round(5).tolist() for row in rows]
        kept.write_text(json.dumps(columns), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def render(results: dict[str, Any]) -> str:
    """Markdown: the course of every run, and what its weights are worth on other captions."""
    settings, seeds = Settings(**results["settings"]), results["seeds"]
    lines = [
        recording.heading("Over-optimisation, and when the monitor says so", results["circumstances"]),
        f"Labels and proxy: {settings.proxy} of the picture; held-out reward: the oracle's share of right attributes, "
        f"over {settings.watched} captions every {settings.every} steps. The guard's limit is {settings.limit:g} below "
        f"the best. `gold`: the recipe playground/dpo on the oracle's labels.\n",
        "| run | seed | at step | alarm | proxy | held-out reward | " + " | ".join(MEASURED) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(MEASURED),
    ]
    for seed, runs in seeds.items():
        lines += [_point(name, seed, runs[name], step) for name in ("narrow", "gold") for step in _told(runs[name])]
    lines += [
        f"\nOn {settings.judged} other captions x {settings.measure.seeds} pictures, against the base, same noise, "
        "ties one half; 95 % intervals resample captions.\n",
        "| weights | seed | win rate by the oracle | win rate by the proxy | share of right attributes |",
        "|---|---|---|---|---|",
    ]
    arms = (
        ("narrow", "best_scores", "narrow, best step before the alarm"),
        ("narrow", "end", "narrow, end"),
        ("gold", "end", "gold, end"),
    )
    for run, key, title in arms:
        lines += [_worth(title, seed, runs["base"], runs[run][key]) for seed, runs in seeds.items() if key in runs[run]]
    lines += ["", "![proxy and held-out reward over the steps](over_optimisation.png)"]
    return "\n".join(lines) + "\n"


def _told(run: dict[str, Any]) -> list[int]:
    """Steps worth a row: the first, the best, that of the alarm, and the last."""
    last = run["curve"][-1]["step"]
    return sorted({0, run["best"], last} | ({run["alarm"]} if run["alarm"] is not None else set()))


def _point(name: str, seed: str, run: dict[str, Any], step: int) -> str:
    at = next(point for point in run["curve"] if point["step"] == step)
    numbers = [f"{at[key]:.3f}" for key in ("proxy_reward", "held_out_reward", *MEASURED)]
    alarm = "here" if step == run["alarm"] else "" if run["alarm"] is not None else "none"
    best = " (best)" if step == run["best"] else ""
    return f"| {name} | {seed} | {step}{best} | {alarm} | {' | '.join(numbers)} |"


def _worth(title: str, seed: str, base: dict[str, Any], scores: dict[str, Any]) -> str:
    rates = [paired_win_rate(np.asarray(base[by]), np.asarray(scores[by])) for by in ("gold", "proxy")]
    change = mean_difference(np.asarray(base["gold"]), np.asarray(scores["gold"]))
    cells = [
        title,
        seed,
        *map(str, rates),
        f"{change.base.value:.3f} -> {change.aligned.value:.3f} ({change.difference})",
    ]
    return f"| {' | '.join(cells)} |"


def plot(results: dict[str, Any], out: Path) -> None:
    """Proxy and held-out reward over the steps of every run; a cross where the guard spoke."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, colour in (("narrow", "tab:red"), ("gold", "tab:blue")):
        for number, runs in enumerate(results["seeds"].values()):
            curve, alarm = runs[name]["curve"], runs[name]["alarm"]
            steps = [point["step"] for point in curve]
            for axis, key in zip(axes, ("proxy_reward", "held_out_reward"), strict=True):
                axis.plot(steps, [point[key] for point in curve], color=colour, label=None if number else name)
                if alarm is not None:
                    at = curve[steps.index(alarm)][key]
                    axis.plot([alarm], [at], "kx", markersize=9, label=None if number else "alarm")
    titles = f"proxy: {results['settings']['proxy']}", "held-out reward: the oracle"
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="step", ylabel=title)
        axis.legend(frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Every field of :class:`Settings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/over_optimisation"))
    parser.add_argument("--out", type=Path, default=OUT)
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    work, out, console = values.pop("work"), values.pop("out"), Console()
    settings = Settings(**values)
    changed = {name: value for name, value in values.items() if value != getattr(Settings(), name)}
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    told = recording.circumstances(f"python -m benchmarks.over_optimisation{options}")
    seeds: dict[str, Any] = {}
    for seed in range(settings.seeds):
        console.rule(f"seed {seed}")
        (work / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        seeds[str(seed)] = study(settings, seed, work / f"seed{seed}", console)
        results = {"circumstances": told, "settings": asdict(settings), "seeds": seeds}
        recording.write(results, render(results), out)
        plot(results, out.with_suffix(".png"))
    console.print(render(results), markup=False)


if __name__ == "__main__":
    main()
