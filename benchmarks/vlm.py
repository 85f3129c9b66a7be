"""Speed and memory of training a vision-language model with DPO: ours packed, ours padded, and TRL, on the same rows.

    python -m benchmarks.vlm                            # 56 M parameters in LLaVA's shape and vocabulary, on the CPU
    python -m benchmarks.vlm --profile 56m-deep         # the same number, with the vocabulary's share of LLaVA-7B
    python -m benchmarks.vlm --profile tiny             # seconds
    python -m benchmarks.vlm --profile llava-7b         # a GPU; qwen2.5-vl-7b likewise

Every variant runs in its own process, alternating. First all of them say what loss and log-probs they see on the same
rows: where two disagree, nothing is timed. TRL needs ``pip install 'mmalign[bench]'``; without it the variant is left
out, and the table says so. Results go to ``benchmarks/results/vlm_speed.{json,md}``, for other profiles than the
default to ``vlm_speed_PROFILE.{json,md}``.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.recording import PACKAGES, RESULTS, commit, versions, write
from benchmarks.vlm_tables import difference, render

DEFAULT = "56m"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, measure, write, show."""
    from benchmarks.vlm_models import PROFILES
    from benchmarks.vlm_sides import VARIANTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default=DEFAULT)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, help="timed steps of each run")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--batch-size", type=int, help="pairs per step")
    parser.add_argument("--checks", type=Path, help="a folder of --work: what variants said there is not asked again")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-vlm"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("MODE", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    profile = PROFILES[given.profile]
    changes = {name: getattr(given, name) for name in ("steps", "repetitions", "batch_size")}
    changes = {name: value for name, value in changes.items() if value is not None}
    if any(value < 1 for value in changes.values()):
        parser.error("--steps, --repetitions and --batch-size have to be at least 1")
    profile = replace(profile, **changes)
    if given.one is not None:
        _one(given.one[0], given.variants[0], profile, Path(given.one[1]))
        return
    settings = {"profile": given.profile, **changes}  # folders are of no interest
    command = " ".join(["python -m benchmarks.vlm", *(f"--{n.replace('_', '-')} {v}" for n, v in settings.items())])
    name = "vlm_speed" if given.profile == DEFAULT else f"vlm_speed_{given.profile.replace('-', '_').replace('.', '_')}"
    out = given.results / f"{name}.json"
    compare(profile, given.variants, given.work / given.profile, command, out, checks=given.checks)
    print((given.results / f"{name}.md").read_text(encoding="utf-8"))


def compare(
    profile: Any, variants: Sequence[str], work: Path, command: str, out: Path, *, checks: Path | None = None
) -> dict[str, Any]:
    """Check, then time, every variant that can run here; ``out`` is written after every run.

    ``checks``: a folder that keeps what variants said earlier; they are asked only where it has nothing.

    SystemExit where variants disagree about the same rows by more than ``profile.tolerance``.
    """
    from benchmarks.vlm_sides import why_missing

    _check_device(profile)
    missing = {variant: reason for variant in variants if (reason := why_missing(variant)) is not None}
    able = [variant for variant in variants if variant not in missing]
    for variant, reason in missing.items():
        print(f"{variant} is left out: {reason}", flush=True)
    said = {variant: _check(variant, profile, work, checks) for variant in able}
    agree(said, profile.tolerance)
    results: dict[str, Any] = {
        "circumstances": circumstances(profile, command),
        "missing": missing,
        "checks": said,
        **use_of(profile),
        "runs": [],
    }
    for repetition in range(profile.repetitions):
        turned = able[repetition % len(able) :] + able[: repetition % len(able)]  # nobody is always the first
        for variant in turned:
            run = in_a_process("time", variant, profile, work)
            results["runs"].append({"variant": variant, "repetition": repetition, **run})
            print(results["runs"][-1], flush=True)
            results["circumstances"]["load_average"].append(round(os.getloadavg()[0], 1))
            write(results, render(results), out)
    return results


def use_of(profile: Any) -> dict[str, float]:
    """Operations that a pair needs and that the device does a second."""
    from benchmarks.mfu import matmul_peak, vlm_operations
    from benchmarks.vlm_models import DTYPES, parameters_of

    return {
        "operations_per_pair": vlm_operations(profile, parameters_of(profile)),
        "matmul_operations_per_second": matmul_peak(profile.device, DTYPES[profile.dtype]),
    }


def agree(said: dict[str, dict[str, Any]], tolerance: float) -> None:
    """SystemExit where variants say something else about the same rows."""
    found = difference(said)
    print(f"largest relative differences: {found}", flush=True)
    if max(found.values()) > tolerance:
        raise SystemExit(
            f"the variants disagree on the same rows: {found}, and {tolerance:g} is allowed; what is faster and wrong "
            f"does not count, so nothing was timed. {json.dumps(said)}"
        )


def _check(variant: str, profile: Any, work: Path, kept: Path | None) -> dict[str, Any]:
    if kept is not None and (kept / variant / "check.json").is_file():
        return json.loads((kept / variant / "check.json").read_text(encoding="utf-8"))
    return in_a_process("check", variant, profile, work)


def in_a_process(mode: str, variant: str, profile: Any, work: Path) -> dict[str, Any]:
    """One variant in a process that runs nothing else."""
    folder = work / variant
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = folder / f"{mode}.json"
    command = [sys.executable, "-m", "benchmarks.vlm", "--profile", profile.name, "--variants", variant]
    command += ["--steps", str(profile.steps), "--batch-size", str(profile.batch_size), "--one", mode, str(out)]
    # One thread: waiting for others, which a busy machine makes long, would count as the processor's time.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if profile.device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def _one(mode: str, variant: str, profile: Any, out: Path) -> None:
    from benchmarks.vlm_sides import check, timed

    measure = {"check": check, "time": timed}[mode]
    out.write_text(json.dumps(measure(variant, profile, out.parent)), encoding="utf-8")


def _check_device(profile: Any) -> None:
    if profile.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(f"profile {profile.name} needs a CUDA device, and there is none here; 56m and tiny do not")


def circumstances(profile: Any, command: str) -> dict[str, Any]:
    """Where, with what and on what this was measured."""
    from benchmarks.vlm_models import parameters_of

    return {
        "command": command,
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_accelerator(profile)}",
        "load_average": [round(os.getloadavg()[0], 1)],
        "versions": versions([name for name in PACKAGES if name != "diffusers"]),
        "profile": {
            **{name: getattr(profile, name) for name in ("name", "kind", "side", "dtype", "device", "checkpointing")},
            **{name: getattr(profile, name) for name in ("question_tokens", "answer_tokens", "batch_size", "rank")},
            **{name: getattr(profile, name) for name in ("tolerance", "warm_up", "steps", "picture_tokens")},
            "parameters": parameters_of(profile),
        },
    }


def _accelerator(profile: Any) -> str:
    if profile.device == "cpu":
        return "no GPU used, one thread"
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
