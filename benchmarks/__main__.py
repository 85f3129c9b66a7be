"""The suite of measurements, one table a command.

    python -m benchmarks                                    # what there is
    python -m benchmarks vlm                                # one table, on the CPU
    python -m benchmarks diffusion --peer-script PATH/train_diffusion_dpo_sdxl.py --peer-script PATH/train_with_lora.py
    python -m benchmarks all --profile gpu --peer-script ...    # everything that is for a GPU; weights are random
    python -m benchmarks all --profile rehearsal            # the same programs at tiny size on a CPU

Every table is a program of its own, with more options (``python -m benchmarks.NAME --help``), and writes JSON and a
table made from it to ``benchmarks/results``; ``python -m benchmarks.readme`` then rewrites the main README's tables.
What comes after ``--`` goes to the programs as it is.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROFILES = ("cpu", "gpu", "rehearsal")
Commands = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """``runs``: profile -> the argument lists of ``module``, one process each; a profile that is missing has none."""

    what: str
    module: str
    runs: dict[str, Commands] = field(repr=False)


def _quick(*arguments: str) -> tuple[str, ...]:
    return (*arguments, "--repetitions", "1", "--steps", "1")


LIKE = ("diffusers", "mapo", "salesforce")
TABLES = {
    "diffusion": Table(
        "SDXL DPO and MaPO against the published scripts; without --peer-script our side alone",
        "benchmarks.diffusion",
        {
            "cpu": tuple(("--like", name) for name in LIKE),
            "gpu": (
                *(("--like", name, "--profile", "sdxl-lora") for name in LIKE[:2]),
                *(("--like", name, "--profile", "sdxl-lora", "--compile") for name in LIKE[:2]),
                ("--like", "diffusers", "--profile", "sdxl-lora-checkpointed"),
                ("--like", "salesforce", "--profile", "sdxl-full"),
            ),
            "rehearsal": tuple(_quick("--like", name, "--profile", "tiny-gpu") for name in LIKE),
        },
    ),
    "vlm": Table(
        "LLaVA and Qwen2.5-VL DPO, packed and padded, against TRL",
        "benchmarks.vlm",
        {
            "cpu": (("--profile", "56m"), ("--profile", "56m-deep")),
            "gpu": (("--profile", "llava-7b"), ("--profile", "qwen2.5-vl-7b")),
            "rehearsal": (_quick("--profile", "tiny-qwen"),),
        },
    ),
    "rewards": Table(
        "reward models: pictures a second, in batches and call by call",
        "benchmarks.rewards",
        {
            "cpu": ((),),
            "gpu": (
                (
                    "--model",
                    "ViT-H-14",
                    "--device",
                    "cuda",
                    "--dtype",
                    "bfloat16",
                    "--pictures",
                    "512",
                    "--batch-sizes",
                    "1",
                    "16",
                    "64",
                ),
            ),
            "rehearsal": (("--pictures", "2", "--side", "64", "--batch-sizes", "2", "--repeats", "1"),),
        },
    ),
    "cache": Table("the disk cache of latents and text: time and memory", "benchmarks.cache", {"cpu": ((),)}),
    "memory": Table(
        "memory that the doctor predicts, and that runs held",
        "benchmarks.memory",
        {"cpu": ((),), "gpu": (("--profile", "gpu"),), "rehearsal": (("--profile", "tiny"),)},
    ),
    "scale": Table(
        "a thousand to a million pairs: indexing, first step, memory",
        "benchmarks.scale",
        {"cpu": ((),), "rehearsal": (("--pairs", "1000", "3000"),)},
    ),
    "profile": Table(
        "where the time of a step goes, by torch's profiler",
        "benchmarks.profile_steps",
        {"cpu": ((),), "gpu": (("--profile", "gpu"),), "rehearsal": (("--profile", "tiny"),)},
    ),
    "parts": Table(
        "what the parts of a diffusion step cost by themselves",
        "benchmarks.sdxl_parts",
        {
            "cpu": ((),),
            "gpu": (("--shape", "real", "--device", "cuda"),),
            "rehearsal": (("--shape", "tiny", "--repeats", "1"),),
        },
    ),
    "check": Table("ratios in seconds: what is recorded for every commit", "benchmarks.bench_check", {"cpu": ((),)}),
    "arena": Table("the leaderboard on a million votes", "benchmarks.arena", {"cpu": ((),)}),
    "photographs": Table("real photographs through the readers", "benchmarks.photographs", {"cpu": ((),)}),
    "quickstart": Table("the quickstart, timed", "benchmarks.quickstart", {"cpu": ((),)}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """List, or run; the number of programs that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=[*TABLES, "all"])
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument(
        "--peer-script", type=Path, action="append", default=[], help="a published script; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    given, more = parser.parse_args(words[:end]), words[end + 1 :]
    if given.table is None:
        print(listing())
        return 0
    names = [name for name in TABLES if given.profile in TABLES[name].runs] if given.table == "all" else [given.table]
    if given.profile not in TABLES[names[0]].runs:
        parser.error(f"{given.table} has no {given.profile} profile; it has {', '.join(TABLES[given.table].runs)}")
    scripts = _named(given.peer_script)
    return sum(run(command, dry=given.dry_run) for command in commands(names, given.profile, scripts, more))


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    if not paths:
        return {}
    from benchmarks.diffusion_scripts import recognised  # with torch, which a list of tables does not need

    return {recognised(path).name: path for path in paths}


def listing() -> str:
    """Every table with its profiles."""
    lines = [f"{name:<12} {table.what} ({', '.join(table.runs)})" for name, table in TABLES.items()]
    return "\n".join(["python -m benchmarks TABLE [--profile NAME]", "", *lines])


def commands(names: Sequence[str], profile: str, scripts: dict[str, Path], more: Sequence[str]) -> Iterator[list[str]]:
    """The command lines of ``names``; ``scripts``: peer -> its script, which then runs beside our side."""
    for name in names:
        for arguments in TABLES[name].runs[profile]:
            command = [sys.executable, "-m", TABLES[name].module, *arguments, *more]
            if name == "diffusion" and (peer := arguments[arguments.index("--like") + 1]) in scripts:
                place = command.index("--like")
                command[place : place + 2] = ["--peer-script", str(scripts[peer])]
            if profile == "rehearsal":
                command += ["--results", "runs/rehearsal"]  # a rehearsal overwrites nothing
            yield command


def run(command: list[str], *, dry: bool) -> int:
    """1 where the program failed; the others go on."""
    print(f"$ {' '.join(['python', *command[1:]])}", flush=True)
    if dry:
        return 0
    began = time.monotonic()
    code = subprocess.run(command, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
    print(f"{'done' if code == 0 else f'FAILED with status {code}'} after {time.monotonic() - began:.0f} s", flush=True)
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
