"""Whether sharing prompts still pays: packed against padded VLM DPO, in one run, on a model of seconds.

    make bench-check

Processor seconds of different machines or days say nothing about the code; the ratio of two variants that alternate in
one process does. Adds a line to ``benchmarks/results/bench_check.jsonl``; exit status 1 where packing saves less than
``FLOOR`` says.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.vlm import agree, circumstances
from benchmarks.vlm_tables import ratios

BOTH = ("packed", "padded")
RECORD = Path("benchmarks/results/bench_check.jsonl")
FLOOR = 1.15
"""Two thirds of the tokens are shared, so about 1.5 is what there is to gain."""


def main() -> int:
    """Measure, record, judge; the exit status."""
    from benchmarks.vlm_models import PROFILES
    from benchmarks.vlm_sides import check, timed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args()
    profile = PROFILES["tiny"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agree({variant: check(variant, profile, folder / "check" / variant) for variant in BOTH}, profile.tolerance)
        runs = [
            {"variant": variant, "repetition": number, **timed(variant, profile, folder / f"{number}" / variant)}
            for number in range(given.repetitions)
            for variant in BOTH
        ]
    line = summary({"runs": runs, "circumstances": circumstances(profile, "make bench-check")})
    given.record.parent.mkdir(parents=True, exist_ok=True)
    with given.record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"padded / packed, processor seconds per step: {line['ratio']:.2f}; at least {FLOOR:g} is asked for")
    return 0 if line["ratio"] >= FLOOR else 1


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """One line for the record; ``ratio`` is the geometric mean over the repetitions."""
    each = ratios(results["runs"], "padded", "packed", "step_cpu_seconds")
    circumstances = results["circumstances"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": circumstances["commit"],
        "machine": circumstances["machine"],
        "torch": circumstances["versions"]["torch"],
        "transformers": circumstances["versions"]["transformers"],
        "ratio": math.exp(sum(math.log(ratio) for ratio in each) / len(each)),
        "ratios": each,
    }


if __name__ == "__main__":
    sys.exit(main())
