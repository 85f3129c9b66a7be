"""The memory that ``mmalign doctor`` predicts against what runs held: ``python -m benchmarks.memory`` (minutes).

Every configuration trains three steps in a process of its own. ``held``: bytes of tensors alive at once, as torch's
allocator would report them, counted while the real training runs; on a GPU it is ``torch.cuda.max_memory_allocated``.
``RSS``: how far the process grew from the moment before the weights were loaded, which also has libraries' buffers and
what the C allocator kept. Results: ``benchmarks/results/memory[_gpu].{json,md}``.
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

from benchmarks.recording import RESULTS, circumstances, heading, peak_rss_mib, write

MIB = 2**20
LORA, DPO = {"rank": 8, "alpha": 8}, {"loss": "dpo", "beta": 5000}
MAPO = {"loss": "mapo", "beta": 0.1, "snr": 0.5}
# name -> (shape, is LoRA, objective, training, data)
CPU: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "DPO, LoRA, cached": ("MID", True, DPO, {}, {"cache": "disk"}),
    "DPO, LoRA, nothing cached": ("MID", True, DPO, {}, {"cache": "none"}),
    "DPO, LoRA, batch of 2, checkpointing": (
        "MID",
        True,
        DPO,
        {"batch_size": 2, "gradient_checkpointing": True},
        {"cache": "disk"},
    ),
    "MaPO, LoRA, batch of 2": ("MID", True, MAPO, {"batch_size": 2}, {"cache": "disk"}),
    "DPO, all weights": ("MID", False, DPO, {}, {"cache": "disk"}),
    "DPO, all weights, checkpointing, average": (
        "MID",
        False,
        DPO,
        {"gradient_checkpointing": True, "ema": {}},
        {"cache": "disk"},
    ),
    "DPO, all weights, adafactor": ("MID", False, DPO, {"optimizer": "adafactor"}, {"cache": "disk"}),
}
BF16 = {"mixed_precision": "bf16"}
GPU = {
    "SDXL DPO, LoRA, batch of 1": ("REAL", True, DPO, BF16, {"cache": "disk"}),
    "SDXL DPO, LoRA, batch of 4, checkpointing": (
        "REAL",
        True,
        DPO,
        {**BF16, "batch_size": 4, "gradient_checkpointing": True},
        {"cache": "disk"},
    ),
    "SDXL DPO, all weights, batch of 8": (
        "REAL",
        False,
        DPO,
        {**BF16, "batch_size": 8, "gradient_checkpointing": True},
        {"cache": "disk"},
    ),
}
TINY = {"DPO, LoRA, bf16": ("TINY", True, DPO, {**BF16, "batch_size": 2}, {"cache": "disk"})}
PROFILES = {"cpu": CPU, "gpu": GPU, "tiny": TINY}


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--only", nargs="+", help="names of configurations")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-memory"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    device = "cuda" if given.profile == "gpu" else "cpu"
    if given.one is not None and given.one[1] == "-":
        config_of(given.one[0], given.profile, given.work, device)
        return
    if given.one is not None:
        Path(given.one[1]).write_text(
            json.dumps(measured(given.one[0], given.profile, given.work, device)), encoding="utf-8"
        )
        return
    names = given.only or list(PROFILES[given.profile])
    command = "python -m benchmarks.memory" + (f" --profile {given.profile}" if given.profile != "cpu" else "")
    out = given.results / f"memory{'' if given.profile == 'cpu' else f'_{given.profile}'}.json"
    results: dict[str, Any] = {"circumstances": circumstances(command, device), "rows": []}
    for name in names:
        results["rows"].append({"configuration": name, **in_a_process(name, given.profile, given.work)})
        print(results["rows"][-1], flush=True)
        write(results, render(results), out)
    print(render(results))


def in_a_process(name: str, profile: str, work: Path) -> dict[str, Any]:
    """:func:`measured` in a process that runs nothing else; what makes the model's folder is another one."""
    work.mkdir(parents=True, exist_ok=True)
    out = work / "measured.json"
    for target in ("-", str(out)):
        command = [sys.executable, "-m", "benchmarks.memory", "--profile", profile, "--work", str(work)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--one", name, target], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed for {name}:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def config_of(name: str, profile: str, work: Path, device: str) -> Any:
    """The configuration of that name, its model and rows written to ``work``."""
    from benchmarks import diffusion_profiles, sdxl_models
    from mmalign.training.config import Config

    shape, lora, objective, training, data = PROFILES[profile][name]
    folder = work / shape.lower()
    base = diffusion_profiles.Profile(name, getattr(sdxl_models, shape), batch_size=8, steps=3, device=device)
    model, rows = diffusion_profiles.prepare(base, folder)
    shutil.rmtree(work / "run", ignore_errors=True)
    dtype = "bfloat16" if lora and training.get("mixed_precision") == "bf16" else "float32"
    return Config.model_validate(
        {
            "model": {"name": str(model), "lora": LORA if lora else None, "dtype": dtype},
            "data": {"source": "pickapic", "path": str(rows), "resolution": base.shape.resolution, **data},
            "objective": [objective],
            "training": {"steps": 3, "batch_size": 1, "log_every": 3, **training},
            "output": str(work / "run"),
        }
    )


def measured(name: str, profile: str, work: Path, device: str) -> dict[str, Any]:
    """Predicted parts, and what a run of three steps held; bytes."""
    import torch

    from mmalign.doctor import predict_memory
    from mmalign.doctor.live import LiveBytes, alive
    from mmalign.training.run import train
    from mmalign.training.trainer import Trainer

    config = config_of(name, profile, work, device)
    predicted = predict_memory(config)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin, before = Trainer._train, peak_rss_mib() * MIB
    held: list[int] = []

    def counted(self: Any) -> None:
        there = [tensor for tensor in alive() if tensor.device.type != "meta"]
        weights = sum(tensor.untyped_storage().nbytes() for tensor in there)
        with LiveBytes(there) as live:
            begin(self)
        held.append(weights + live.peak)

    if device == "cpu":
        Trainer._train = counted  # type: ignore[method-assign]
    train(config)
    Trainer._train = begin  # type: ignore[method-assign]
    if device == "cuda":
        held.append(torch.cuda.max_memory_allocated())
    return {
        "predicted": predicted.total,
        "parts": predicted.parts,
        "held": held[0],
        "rss": peak_rss_mib() * MIB - before,
    }


def render(results: dict[str, Any]) -> str:
    """Markdown, one row a configuration."""
    heads = ["configuration", "predicted, MiB", "held by tensors, MiB", "predicted / held"]
    heads += ["growth of RSS, MiB", "predicted / RSS"]
    lines = [
        heading("Memory: what `mmalign doctor` predicts, and what runs held", results["circumstances"]),
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for row in results["rows"]:
        predicted, held, rss = (row[name] / MIB for name in ("predicted", "held", "rss"))
        cells = [
            f"{predicted:,.0f}",
            f"{held:,.0f}",
            f"{predicted / held:.2f}",
            f"{rss:,.0f}",
            f"{predicted / rss:.2f}",
        ]
        lines.append(f"| {row['configuration']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
