"""How long the leaderboard takes, and what a vote costs: ``python -m benchmarks.arena`` (about a minute).

Simulated votes of known strengths; results go to ``benchmarks/results/arena.json`` and ``arena.md``. The threads of the
linear algebra are limited to ``--cores`` before numpy loads. Processor time is written beside elapsed time, because
other work on the machine lengthens only the latter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
FULL = 1_000_000
MODELS, VOTERS = 50, 20_000


def votes_of(n: int, *, style: bool = False) -> Any:
    """(names, arrays, true strengths) of ``n`` votes, with ties and a bias to the left."""
    import numpy as np

    generator = np.random.default_rng(0)
    strengths = generator.normal(0, 0.7, MODELS)
    strengths -= strengths.mean()
    first = generator.integers(MODELS, size=n)
    second = (first + 1 + generator.integers(MODELS - 1, size=n)) % MODELS
    left = generator.integers(2, size=n) * 2 - 1
    covariates = {name: generator.normal(size=n) for name in ("saturation", "sharpness")} if style else {}
    d = strengths[first] - strengths[second] + 0.1 * left + sum((0.2 * x for x in covariates.values()), np.zeros(n))
    weights = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full(n, 0.5)])
    uniform = generator.random(n) * weights.sum(0)
    outcome = np.where(uniform < weights[0], 0, np.where(uniform < weights[0] + weights[1], 1, 2))
    arrays = {"first": first, "second": second, "outcome": outcome, "left": left, "covariates": covariates}
    return [f"m{place:02}" for place in range(MODELS)], arrays | {"user": generator.integers(VOTERS, size=n)}, strengths


def timed(name: str, work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """What ``work`` gave, and the seconds it took."""
    elapsed, processor = time.perf_counter(), time.process_time()
    result = work()
    row = {
        "what": name,
        "seconds": round(time.perf_counter() - elapsed, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
    }
    print(row, flush=True)
    return row, result


def boards(n: int) -> list[dict[str, Any]]:
    """The leaderboard from arrays, with each kind of interval, and with style control."""
    from mmalign.arena import Comparisons, leaderboard, smallest_flip

    names, arrays, strengths = votes_of(n)
    rows = []
    label = f"{n:,} votes, {MODELS} models, {VOTERS:,} voters"
    for interval in ("sandwich", "bootstrap"):
        row, board = timed(
            f"leaderboard, {interval}{' of 200 refits' if interval == 'bootstrap' else ''}: {label}",
            lambda kind=interval: leaderboard(Comparisons.of_arrays(names, **arrays), interval=kind),
        )
        inside = [board[name].low < truth < board[name].high for name, truth in zip(names, strengths, strict=True)]
        rows.append({**row, "true strengths in the 95 % interval": f"{sum(inside)} of {MODELS}"})
    row, flip = timed(f"smallest flip of votes: {label}", lambda: smallest_flip(Comparisons.of_arrays(names, **arrays)))
    rows.append({**row, "note": str(flip)})
    names, arrays, _ = votes_of(n, style=True)
    row, board = timed(
        f"leaderboard, sandwich, two style covariates: {label}",
        lambda: leaderboard(Comparisons.of_arrays(names, **arrays)),
    )
    return [*rows, {**row, "note": ", ".join(f"{one.name} {one.value:.3f}" for one in board.style) + " (true: 0.2)"}]


def store(n: int) -> list[dict[str, Any]]:
    """Battles opened and voted on, every one on disk before the next, and the board read back from the file."""
    from mmalign.arena import Ballot, Battle, Side, VoteStore, leaderboard

    with tempfile.TemporaryDirectory() as folder, VoteStore(Path(folder) / "votes.db") as kept:

        def fill() -> None:
            for number in range(n):
                sides = tuple(
                    Side(model=f"m{k}", prompt="p", file=f"{k}.png", image_sha256=f"{number:063x}{k}") for k in (0, 1)
                )
                kept.vote(kept.open_battle(Battle(sides, seed=number)), f"v{number % 50}", Ballot(better="left"))

        written, _ = timed(f"store: {n:,} battles opened and voted on, each flushed to disk", fill)
        read, _ = timed(f"store: board of {n:,} votes from the file", lambda: leaderboard(kept.votes()))
    written["note"] = f"{1000 * written['seconds'] / n:.1f} ms a battle with its vote (two flushes)"
    return [written, read]


def render(record: dict[str, Any]) -> str:
    """Markdown, one row a measurement."""
    lines = [
        f"{record['cores']} cores, load average {record['load_average']} at the start, `{record['commit'][:12]}`.",
        "",
        "| what | seconds | processor seconds | result |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        named = ("what", "seconds", "processor_seconds")
        result = "; ".join(
            value if name == "note" else f"{name}: {value}" for name, value in row.items() if name not in named
        )
        lines.append(f"| {row['what']} | {row['seconds']} | {row['processor_seconds']} | {result} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, record, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=FULL)
    parser.add_argument("--stored", type=int, default=500)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if "numpy" in sys.modules:
        raise SystemExit("numpy is loaded already, and its threads cannot be limited any more")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.cores)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {"cores": arguments.cores, "load_average": round(os.getloadavg()[0], 1), "commit": commit}
    record["rows"] = [*boards(arguments.votes), *store(arguments.stored)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "arena.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "arena.md").write_text(render(record), encoding="utf-8")


if __name__ == "__main__":
    main()
