"""What the disk cache saves: the same DPO run without it, filling it and finding it filled, each in its own process.

    python -m benchmarks.cache            # both models, three repetitions
    python -m benchmarks.cache --quick    # the playground's model alone, once

The larger model has random weights; its VAE costs as much of its UNet as SDXL's does at 1024 px, which is counted here.
Variants alternate within each repetition, so that what else the machine does hits all of them. Results go to
``benchmarks/results/cache.{json,md}``.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cache_models import MID_SIZE, PLAYGROUND, Subject, cost_ratio, prepare
from benchmarks.cache_tables import render
from benchmarks.peeking import watched_steps
from benchmarks.recording import RESULTS, Moment, commit, peak_rss_mib, sum_of

VARIANTS = ("none", "filling", "filled")


def main() -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the playground's model alone, one repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-cache"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        measure(json.loads(arguments.one.read_text(encoding="utf-8")), arguments.one.with_suffix(".result"))
        return
    subjects = (PLAYGROUND,) if arguments.quick else (PLAYGROUND, MID_SIZE)
    repetitions = 1 if arguments.quick else arguments.repetitions
    runs = [run for subject in subjects for run in repeat(subject, repetitions, arguments.work)]
    results = {
        "circumstances": circumstances(arguments.quick, repetitions),
        "cost_ratios": {subject.name: cost_ratio(subject) for subject in subjects} | {"SDXL at 1024 px": cost_ratio()},
        "subjects": {subject.name: subject.describe() for subject in subjects},
        "runs": runs,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "cache.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "cache.md").write_text(render(results), encoding="utf-8")
    print(render(results))


def repeat(subject: Subject, repetitions: int, work: Path) -> list[dict[str, Any]]:
    """Every variant ``repetitions`` times, alternating; the cache is emptied before it is filled."""
    folder = work / subject.name.replace("/", "_")
    config = prepare(subject, folder)
    runs = []
    for repetition in range(repetitions):
        for variant in VARIANTS:
            if variant == "filling":
                shutil.rmtree(folder / "cache", ignore_errors=True)
            output = folder / "run"
            shutil.rmtree(output, ignore_errors=True)
            changed = config | {"output": str(output)}
            changed["data"] = config["data"] | (
                {"cache": "none"} if variant == "none" else {"cache": "disk", "cache_folder": str(folder / "cache")}
            )
            run = in_a_process(changed, folder / f"{variant}.json")
            runs.append({"model": subject.name, "variant": variant, "repetition": repetition, **run})
            if variant != "none":
                runs[-1]["cache_bytes"] = sum(path.stat().st_size for path in (folder / "cache").rglob("*.safetensors"))
            print({key: value for key, value in runs[-1].items() if key != "losses"}, flush=True)
    losses = [run["losses"] for run in runs]
    if any(each != losses[0] for each in losses):
        raise SystemExit(f"{subject.name}: runs with and without cache differ in their losses; they must be equal")
    return runs


def in_a_process(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """:func:`measure` in a process that runs nothing else."""
    path.write_text(json.dumps({"config": config, "started": time.time()}), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.cache", "--one", str(path)]
    # One thread: waiting for others, which a busy machine makes long, would count as the processor's time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(path.with_suffix(".result").read_text(encoding="utf-8"))


def measure(task: dict[str, Any], path: Path) -> None:
    """Train as ``task`` says and write what it took.

    Everything is given twice: as seconds on the clock, and as seconds of the processor (``cpu``), which say less about
    what else the machine did. ``start_up``: from the start of the process to the first step, without filling the cache,
    which is ``encode``. ``pair``: one pair of the steps after the first, which is slower.
    """
    from mmalign.training.config import Config
    from mmalign.training.run import train

    started = Moment(task["started"], 0.0)
    steps: list[Moment] = []
    config = Config.model_validate(task["config"])
    with watched_steps(lambda _: steps.append(Moment.now())) as filled:
        folder = train(config).folder
    encode = sum_of(filled)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    pair = (steps[-1] - steps[1]) / ((len(steps) - 2) * config.training.batch_size)
    results = {
        **pair.named("pair"),
        **(steps[0] - started - encode).named("start_up"),
        **encode.named("encode"),
        **(Moment.now() - started).named("whole"),
        "peak_rss_mib": peak_rss_mib(),
        "losses": [line["loss"] for line in lines],
    }
    path.write_text(json.dumps(results), encoding="utf-8")


def circumstances(quick: bool, repetitions: int) -> dict[str, Any]:
    """Where and with what this was measured."""
    import diffusers
    import torch

    return {
        "command": "python -m benchmarks.cache" + (" --quick" if quick else f" --repetitions {repetitions}"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread used",
        "load_average": round(statistics.mean(os.getloadavg()), 1),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
