"""The VLM quickstart, seed by seed: ``python -m benchmarks.vlm_quickstart --seeds 0 1 2 3 4``.

Seeds whose run is there are not run again, and processes with different seeds may work side by side: what each keeps is
a file in ``--work``. Writes ``benchmarks/results/vlm_quickstart.json`` and the table beside it.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.vlm_records import COLUMNS, RESULTS, commit, kept, pooled, read, write
from mmalign.quickstart_vlm import PICTURES, RECIPE, quickstart_vlm

RECORD = RESULTS / "vlm_quickstart.json"


def run(seed: int, work: Path) -> None:
    """One quickstart with all of its defaults, and what is kept of it."""
    target = work / f"seed{seed}.json"
    if target.exists():
        return
    started, spent = time.perf_counter(), time.process_time()
    done = quickstart_vlm(seed=seed, out=work / f"seed{seed}")
    record = {
        "seed": seed,
        "seconds": round(time.perf_counter() - started),
        "processor_seconds": round(time.process_time() - spent),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "commit": commit(),
        "summary": done.comparison.summary(),
        "measures": kept(done.comparison),
    }
    write(target, json.dumps(record, indent=1) + "\n")


def render(runs: list[dict[str, Any]]) -> str:
    """Markdown: one row a seed, the differences pooled under it."""
    titles = list(COLUMNS.values())
    lines = [
        f"`mmalign quickstart --task vlm`: the recipe `{RECIPE}`, {PICTURES} held-out pictures without habits.",
        "Base -> aligned (difference [95 % interval over pictures; in the last row over seeds, by Student's t]).",
        "",
        f"| seed | {' | '.join(titles)} | seconds | processor seconds | commit |",
        "|---" * (len(titles) + 4) + "|",
    ]
    for row in runs:
        cells = " | ".join(pooled([row["measures"]], name) for name in COLUMNS)
        told = f"{row['seconds']} | {row['processor_seconds']} | `{row['commit'][:12]}`"
        lines.append(f"| {row['seed']} | {cells} | {told} |")
    if len(runs) > 1:
        cells = " | ".join(pooled([row["measures"] for row in runs], name) for name in COLUMNS)
        lines.append(f"| all | {cells} | | | |")
    lines += ["", "Seconds by the clock are of a machine that other work shared; processor seconds are not.", ""]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write down everything there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/vlm-quickstart"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        run(seed, arguments.work)
    found = [read(path) for path in arguments.work.glob("seed*.json")]
    runs = sorted(found, key=lambda row: row["seed"])
    if not runs:
        raise SystemExit(f"{arguments.work} holds no run yet; name one with --seeds")
    write(RECORD, json.dumps(runs, indent=1) + "\n")
    write(RECORD.with_suffix(".md"), render(runs))
    print(render(runs))


if __name__ == "__main__":
    main()
