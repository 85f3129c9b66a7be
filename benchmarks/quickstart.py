"""The quickstart as a newcomer runs it, timed: ``python -m benchmarks.quickstart --methods dpo mapo --seeds 0``.

Each run is its own process on the threads that ``--cores`` allows; seconds, peak memory and the summary line are added
to ``benchmarks/results/quickstart.json`` and rendered to ``quickstart.md`` beside it.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
SUMMARY = re.compile(r"win rate (?P<rate>[\d.]+) \[(?P<low>[\d.]+), (?P<high>[\d.]+)\].*")


def run(method: str, seed: int, cores: int, out: Path) -> dict[str, Any]:
    """One quickstart; its own words for the result."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, "-m", "mmalign.cli", "quickstart", "--method", method, "--seed", str(seed)]
    command += ["--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": str(cores)}
    )
    os.sched_setaffinity(process.pid, allowed)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        print(line, end="", flush=True)
    if process.wait() != 0:
        raise SystemExit(f"quickstart failed: {' '.join(command)}")
    found = SUMMARY.search("".join(lines))
    if found is None:
        raise SystemExit("quickstart printed no win rate")
    return {
        "method": method,
        "seed": seed,
        "cores": cores,
        "seconds": round(time.perf_counter() - started),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        "summary": found.group(0).strip(),
        **{name: float(found[name]) for name in ("rate", "low", "high")},
    }


def render(results: list[dict[str, Any]]) -> str:
    """Markdown, one row a run."""
    lines = [
        "| method | seed | cores | seconds | peak memory | win rate [95 %] | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results, key=lambda row: (row["method"], row["seed"])):
        lines.append(
            f"| {row['method']} | {row['seed']} | {row['cores']} | {row['seconds']} | {row['peak_memory_gb']} GB "
            f"| {row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | `{row['commit'][:12]}` |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, add to the record, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["dpo", "mapo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-quickstart"))
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = RESULTS / "quickstart.json"
    results = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    for seed in arguments.seeds:
        for method in arguments.methods:
            # A folder of its own, so that the sampling of pairs is part of every measured run.
            row = run(method, seed, arguments.cores, arguments.out / f"{method}-{seed}-{int(time.time())}")
            others = [old for old in results if (old["method"], old["seed"]) != (method, seed)]
            results = [*others, {**row, "commit": commit}]
            record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (RESULTS / "quickstart.md").write_text(render(results), encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
