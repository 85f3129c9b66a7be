"""A thousand to a million pairs in parquet: time to the first step, memory, and what the cache costs.

    python -m benchmarks.scale                          # 1e3 .. 1e6 pairs, about an hour, under 2 GB in --work
    python -m benchmarks.scale --pairs 1000 3000        # a minute

``streamed``: nothing is cached, pictures are read in blocks as they are trained on (``data.verify: head``,
``data.shuffle: blocks``). ``cache``: all pictures are gone through and encoded once. ``cached``: another run that finds
that cache. Each in a process of its own on playground/tiny-sdxl; pictures are 16 small ones in turn, so that the files
stay small, and captions are a thousand. Results: ``benchmarks/results/scale.{json,md,png}``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache_tables import grown
from benchmarks.recording import RESULTS, Moment, circumstances, heading, peak_rss_mib, write

PAIRS = (1_000, 10_000, 100_000, 1_000_000)
SIDE, FILES, STEPS, PICTURES = 64, 8, 20, 16
STAGES = ("streamed", "cache", "cached")
LIMIT_SECONDS = 30
"""To the first step of a million pairs, once the cache is there."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write shards, measure every stage, delete the shards, write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=list(PAIRS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-scale"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        Path(given.one[1]).write_text(json.dumps(measured(given.one[0], given.work)), encoding="utf-8")
        return
    command = f"python -m benchmarks.scale --pairs {' '.join(map(str, given.pairs))}"
    results: dict[str, Any] = {"circumstances": circumstances(command), "rows": []}
    for pairs in given.pairs:
        folder = given.work / str(pairs)
        shutil.rmtree(folder, ignore_errors=True)
        write_shards(folder / "data", pairs)
        row: dict[str, Any] = {"pairs": pairs, "bytes": sum(path.stat().st_size for path in folder.rglob("*.parquet"))}
        for stage in given.stages:
            row[stage] = in_a_process(stage, folder)
            print(pairs, stage, row[stage], flush=True)
        shutil.rmtree(folder)
        results["rows"].append(row)
        write(results, render(results), given.results / "scale.json")
    plot(results, given.results / "scale.png")
    print(render(results))


def write_shards(folder: Path, pairs: int) -> None:
    """``FILES`` parquet files with ``pairs`` rows between them."""
    from benchmarks.diffusion_profiles import write_shard

    folder.mkdir(parents=True)
    for number in range(FILES):
        rows = pairs // FILES + (number < pairs % FILES)
        write_shard(folder / f"train-{number:05}.parquet", rows, SIDE, pictures=PICTURES, captions=1000)


def in_a_process(stage: str, folder: Path) -> dict[str, Any]:
    """:func:`measured` in a process that runs nothing else."""
    out = folder / f"{stage}.json"
    command = [sys.executable, "-m", "benchmarks.scale", "--work", str(folder), "--one", stage, str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def measured(stage: str, folder: Path) -> dict[str, float]:
    """Seconds to the first step, encoding among them or not, and the memory held then and at the end."""
    from benchmarks.peeking import watched_steps
    from mmalign.training.config import Config
    from mmalign.training.run import train

    config = Config.model_validate(settings(stage, folder))
    started = Moment.now()
    first: list[tuple[Moment, float]] = []

    def mark(step: int) -> None:
        if step == 0:
            first.append((Moment.now() - started, peak_rss_mib()))

    with watched_steps(mark) as encoding:
        train(config)
    encoded = sum(moment.cpu for moment in encoding)
    return {
        **first[0][0].named("first_step"),
        "encode_cpu_seconds": encoded,
        "first_step_rss_mib": first[0][1],
        "peak_rss_mib": peak_rss_mib(),
    }


def settings(stage: str, folder: Path) -> dict[str, Any]:
    """The run of a stage."""
    reading: dict[str, Any] = {"verify": "head", "shuffle": "blocks"}
    if stage != "streamed":
        reading = {"cache": "disk", "cache_folder": str(folder / "cache"), "shuffle": "blocks"}
    return {
        "model": {"name": "playground/tiny-sdxl", "lora": {"rank": 4, "alpha": 4}},
        "data": {"source": "pickapic", "path": str(folder / "data"), "resolution": SIDE, **reading},
        "objective": [{"loss": "dpo", "beta": 2000}],
        "training": {"steps": STEPS, "batch_size": 2, "log_every": STEPS},
        "output": str(folder / f"run-{stage}"),
    }


def render(results: dict[str, Any]) -> str:
    """Markdown, one row a number of pairs; at last how cost and memory grow."""
    heads = ["pairs", "parquet, MiB", "streamed: first step, s", "peak RSS, MiB"]
    heads += ["going through all and encoding, s", "cached: first step, s", "peak RSS, MiB"]
    lines = [heading("A thousand to a million pairs", results["circumstances"]), f"| {' | '.join(heads)} |"]
    lines.append("|" + "---|" * len(heads))
    for row in results["rows"]:
        cells = [f"{row['pairs']:,}", f"{row['bytes'] / 2**20:.1f}"]
        for stage, columns in zip(
            STAGES,
            (
                ("first_step_cpu_seconds", "peak_rss_mib"),
                ("first_step_cpu_seconds",),
                ("first_step_cpu_seconds", "peak_rss_mib"),
            ),
            strict=True,
        ):
            cells += [f"{row[stage][name]:,.1f}" if stage in row else "" for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    notes = ["", "Seconds of the processor; the pictures of a run's first step are decoded before it.", ""]
    for stage in STAGES:
        kept = [row for row in results["rows"] if stage in row]
        if len(kept) > 1:
            sizes = [row["pairs"] for row in kept]
            seconds = grown(sizes, [row[stage]["first_step_cpu_seconds"] for row in kept])
            memory = grown(sizes, [row[stage]["peak_rss_mib"] for row in kept])
            notes.append(f"- {stage}: {seconds:,.1f} s and {memory:,.0f} MiB more for a million pairs (straight line)")
    last = results["rows"][-1]
    if last["pairs"] == PAIRS[-1] and "cached" in last:
        seconds = last["cached"]["first_step_cpu_seconds"]
        notes += [
            "",
            f"First step of a million cached pairs after {seconds:.1f} s; at most {LIMIT_SECONDS} are asked for.",
        ]
    return "\n".join([*lines, *notes]) + "\n"


def plot(results: dict[str, Any], out: Path) -> None:
    """First step and memory over the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, label in zip(
        axes, ("first_step_cpu_seconds", "peak_rss_mib"), ("first step after, s", "peak RSS, MiB"), strict=True
    ):
        for stage in STAGES:
            rows = [row for row in results["rows"] if stage in row]
            axis.plot([row["pairs"] for row in rows], [row[stage][name] for row in rows], marker="o", label=stage)
        axis.set(xscale="log", xlabel="pairs", ylabel=label, ylim=(0, None))
        axis.legend(frameon=False)
    axes[0].set_yscale("symlog", linthresh=10)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
