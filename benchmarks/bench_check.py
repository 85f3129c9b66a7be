"""Whether what makes runs fast still does, as ratios of variants that alternate in one process, on models of seconds.

    make bench-check

- ``packed``: VLM rows whose prompt is shared against rows padded side by side;
- ``cached``: SDXL's classes with latents and text from the disk cache against encoding them in every step;
- ``trl``: TRL's DPOTrainer against packed rows, where TRL is installed (``pip install -e '.[bench]'``).

Processor seconds of different machines or days say nothing about the code; these ratios do. Adds a line with the commit
to ``benchmarks/results/bench_check.jsonl``; exit status 1 where a ratio is below its ``FLOORS``.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recording import RESULTS, circumstances
from benchmarks.vlm import agree
from benchmarks.vlm_tables import ratios

RECORD = RESULTS / "bench_check.jsonl"
# ratio -> (slow variant, fast variant, what is asked for)
FLOORS = {
    "packed": ("padded", "packed", 1.15),  # two thirds of the tokens are shared: about 1.5 is what there is to gain
    "cached": ("uncached", "cached", 1.3),
    "trl": ("trl", "packed", 1.15),
}
Measure = Callable[[str, Path], dict[str, Any]]


def main() -> int:
    """Measure, record, judge; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        variants = {**vlm_variants(Path(name)), **diffusion_variants(Path(name))}
        runs = alternating(variants, given.repetitions, Path(name))
    line = summary(runs, circumstances("make bench-check"))
    given.record.parent.mkdir(parents=True, exist_ok=True)
    with given.record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for ratio, (slow, fast, floor) in FLOORS.items():
        found = line["ratios"].get(ratio)
        said = "not measured, TRL is not installed" if found is None else f"{found['ratio']:.2f}; at least {floor:g}"
        print(f"{slow} / {fast}, processor seconds per step: {said}")
    return int(any(below(line["ratios"])))


def vlm_variants(folder: Path) -> dict[str, Measure]:
    """Variants of the VLM benchmark that can run here, after they said the same about the same rows."""
    from benchmarks.vlm_models import PROFILES
    from benchmarks.vlm_sides import check, timed, why_missing

    profile = PROFILES["tiny"]
    able = [variant for variant in ("packed", "padded", "trl") if why_missing(variant) is None]
    agree({variant: check(variant, profile, folder / "check" / variant) for variant in able}, profile.tolerance)
    return dict.fromkeys(able, lambda variant, work: timed(variant, profile, work))


def diffusion_variants(folder: Path) -> dict[str, Measure]:
    """With and without the cache, after both said the same about the same rows."""
    from benchmarks.diffusion_profiles import PROFILES, prepare
    from benchmarks.diffusion_sides import check, timed
    from benchmarks.diffusion_tables import difference

    profile, sides = PROFILES["check"], ("cached", "uncached")
    model, data = prepare(profile, folder / "sdxl")
    found = difference(
        {side: check(side, "diffusers", profile, (model, data, folder / "check" / side)) for side in sides}
    )
    if max(found.values()) > profile.tolerance:
        raise SystemExit(f"with and without the cache the same rows give something else: {found}")
    return dict.fromkeys(sides, lambda side, work: timed(side, "diffusers", profile, (model, data, work)))


def alternating(variants: Mapping[str, Measure], repetitions: int, folder: Path) -> list[dict[str, Any]]:
    """Every variant ``repetitions`` times, in turn."""
    return [
        {"variant": variant, "repetition": number, **measure(variant, folder / f"{number}" / variant)}
        for number in range(repetitions)
        for variant, measure in variants.items()
    ]


def summary(runs: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    """One line for the record; ``ratio`` is the geometric mean over the repetitions, ``each`` of which is there too."""
    found = {}
    for name, (slow, fast, _) in FLOORS.items():
        each = ratios(runs, slow, fast, "step_cpu_seconds")
        if each:
            found[name] = {"ratio": math.exp(sum(map(math.log, each)) / len(each)), "each": each}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": told["commit"],
        "machine": told["machine"],
        "versions": told["versions"],
        "ratios": found,
    }


def below(found: Mapping[str, Mapping[str, Any]]) -> list[bool]:
    """For every ratio that was measured, whether it is below what is asked for."""
    return [each["ratio"] < FLOORS[name][2] for name, each in found.items()]


if __name__ == "__main__":
    sys.exit(main())
