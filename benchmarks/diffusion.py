"""Preference training of SDXL against the published scripts: same model, rows, LoRA, optimiser, precision, machine.

    python -m benchmarks.diffusion --peer-script PATH/train_diffusion_dpo_sdxl.py            # CPU, minutes
    python -m benchmarks.diffusion --peer-script PATH/train_with_lora.py --profile tiny      # seconds
    python -m benchmarks.diffusion --peer-script PATH/train_diffusion_dpo_sdxl.py --profile sdxl-lora   # one GPU

Scripts: diffusers' ``train_diffusion_dpo_sdxl.py``, MaPO's ``train_with_lora.py`` and Salesforce's ``train.py``, from a
clone of their repositories; they need ``pip install 'mmalign[bench]'``. Weights are random and the rows a shard in
Pick-a-Pic's columns, both written here. Losses and gradients of both sides on the same rows are compared first: where
they disagree, nothing is timed. Results: ``benchmarks/results/diffusion_PEER[_PROFILE].{json,md}``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.diffusion_scripts import PEERS, Peer, peer_of, recognised
from benchmarks.diffusion_tables import difference, render
from benchmarks.recording import RESULTS, circumstances, write

SIDES = ("peer", "cached", "kept", "uncached")
DEFAULT = "mid"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, time, write, show."""
    from benchmarks.diffusion_profiles import PROFILES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--peer-script", type=Path, help=", ".join(peer.file for peer in PEERS.values()))
    which.add_argument("--like", choices=PEERS, help="the work of that script, by our side alone")
    parser.add_argument("--profile", choices=PROFILES, default=DEFAULT)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--compile", action="store_true", help="training.compile on our side")
    for name in ("steps", "repetitions", "batch-size"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-diffusion"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, metavar=("MODE", "SIDE", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    changes = {name: getattr(given, name) for name in ("steps", "repetitions", "batch_size") if getattr(given, name)}
    profile = replace(PROFILES[given.profile], compiled=given.compile, **changes)
    script: Path | None = given.peer_script
    peer = PEERS[given.like] if script is None else recognised(script)
    if given.one is not None:
        _one(*given.one, script or given.like, profile, given.work)
        return
    without = {"peer"} if script is None else set()
    without |= {"kept"} if peer.objective["loss"] != "dpo" or given.compile else set()  # no reference; see build_cache
    sides = [side for side in given.sides if side not in without]
    _check_here(profile, peer, sides)
    told = {"profile": given.profile, **changes}
    command = " ".join(
        [
            f"python -m benchmarks.diffusion --peer-script {peer.file}",
            *(f"--{n.replace('_', '-')} {v}" for n, v in told.items()),
        ]
    )
    command += " --compile" if given.compile else ""
    suffix = "" if given.profile == DEFAULT else f"_{given.profile.replace('-', '_')}"
    out = given.results / f"diffusion_{peer.name}{suffix}{'_compiled' if given.compile else ''}.json"
    compare(script or peer.name, profile, sides, given.work / given.profile, command, out)
    print(out.with_suffix(".md").read_text(encoding="utf-8"))


def compare(
    script: Path | str, profile: Any, sides: Sequence[str], work: Path, command: str, out: Path
) -> dict[str, Any]:
    """Check, then time every side, alternating; ``out`` is written after every run. ``script``: its path, or its name.

    SystemExit where the sides' losses or gradients on the same rows differ by more than ``profile.tolerance``.
    """
    from benchmarks.sdxl_models import REAL, costs

    peer = peer_of(script)
    made = in_a_process("prepare", sides[0], script, profile, work)
    said = {side: in_a_process("check", side, script, profile, work) for side in sides}
    found = difference(said)
    print(f"largest relative differences: {found}", flush=True)
    if not max(found.values()) <= profile.tolerance:
        raise SystemExit(
            f"the sides disagree on the same rows: {found}, and {profile.tolerance:g} is allowed; what is faster and "
            f"wrong does not count, so nothing was timed. {json.dumps(said)}"
        )
    results: dict[str, Any] = {
        "circumstances": circumstances(command, profile.device),
        "peer": {name: getattr(peer, name) for name in ("name", "file", "source", "objective", "patches", "optimizer")},
        "profile": asdict(profile) | {"rows": profile.rows, "lora": peer.lora},
        "cost_ratios": {"here": costs(profile.shape), "SDXL at 1024 px": costs(REAL)},
        **made,
        "checks": said,
        "runs": [],
    }
    for repetition in range(profile.repetitions):
        for side in [*sides[repetition % len(sides) :], *sides[: repetition % len(sides)]]:
            run = in_a_process("time", side, script, profile, work)
            results["runs"].append({"side": side, "repetition": repetition, **run})
            print(results["runs"][-1], flush=True)
            results["circumstances"]["load_average"].append(round(os.getloadavg()[0], 1))
            write(results, render(results), out)
    return results


def in_a_process(mode: str, side: str, script: Path | str, profile: Any, work: Path) -> Any:
    """One side in a process that runs nothing else, with an empty cache."""
    folder = work / side
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = folder / f"{mode}.json"
    command = [sys.executable, "-m", "benchmarks.diffusion", "--profile", profile.name]
    command += ["--peer-script" if isinstance(script, Path) else "--like", str(script)]
    command += ["--steps", str(profile.steps), "--batch-size", str(profile.batch_size), "--work", str(work)]
    command += [*(["--compile"] if profile.compiled else []), "--one", mode, side, str(out)]
    # One thread: waiting for others, which a busy machine makes long, would count as the processor's time.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path[1:]))}
    if profile.device == "cpu":
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def _one(mode: str, side: str, out: str, script: Path | str, profile: Any, work: Path) -> None:
    from benchmarks.diffusion_profiles import prepare

    folders = (*prepare(profile, work), work / side)
    if mode == "prepare":
        measured: Any = _device_and_work(profile, peer_of(script))
    else:
        from benchmarks.diffusion_sides import check, timed

        measured = {"check": check, "time": timed}[mode](side, script, profile, folders)
    Path(out).write_text(json.dumps(measured), encoding="utf-8")


def _device_and_work(profile: Any, peer: Peer) -> dict[str, float]:
    import torch

    from benchmarks.mfu import diffusion_operations, matmul_peak

    dtype = torch.bfloat16 if profile.precision == "bf16" else torch.float32
    each = diffusion_operations(profile, lora=peer.lora, reference=peer.objective["loss"] == "dpo")
    return {"matmul_operations_per_second": matmul_peak(profile.device, dtype), "operations_per_pair": each}


def _told(script: Path | None, peer: Peer) -> str:
    return f"--like {peer.name}" if script is None else f"--peer-script {peer.file}"


def _check_here(profile: Any, peer: Peer, sides: Sequence[str]) -> None:
    missing = [name for name in peer.needs if find_spec(name) is None] if "peer" in sides else []
    if missing:
        raise SystemExit(f"{peer.file} needs {' and '.join(missing)}; pip install 'mmalign[bench]'")
    if profile.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(f"profile {profile.name} needs a CUDA device, and there is none here; mid and tiny do not")


if __name__ == "__main__":
    main()
