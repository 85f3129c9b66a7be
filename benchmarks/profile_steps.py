"""Where the time of a training step goes: ``python -m benchmarks.profile_steps`` (minutes), by torch's profiler.

SDXL's classes with LoRA, cached, and LLaVA's with packed rows, each in a process of its own, on random weights; self
time of operators, on a GPU that of its kernels. Results: ``benchmarks/results/profile[_PROFILE].{json,md}``; with
``--trace FOLDER`` also a trace for a browser.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recording import RESULTS, circumstances, heading, write

# profile -> work -> (kind, profile of that benchmark)
PROFILES = {
    "cpu": {"SDXL DPO, LoRA, cached": ("diffusion", "mid"), "LLaVA DPO, LoRA, packed": ("vlm", "56m-deep")},
    "gpu": {
        "SDXL DPO, LoRA, cached": ("diffusion", "sdxl-lora"),
        "SDXL DPO, all weights, cached": ("diffusion", "sdxl-full"),
        "LLaVA-7B DPO, LoRA, packed": ("vlm", "llava-7b"),
        "Qwen2.5-VL-7B DPO, LoRA, packed": ("vlm", "qwen2.5-vl-7b"),
    },
    "tiny": {"SDXL DPO, LoRA, cached": ("diffusion", "tiny"), "Qwen2.5-VL DPO, LoRA, packed": ("vlm", "tiny-qwen")},
}
# Words in the names of operators and kernels, the first match counts.
KINDS = {
    "attention": ("attention", "flash", "fmha"),
    "convolution": ("conv", "cudnn", "implicit"),
    "matrix products": ("mm", "linear", "gemm", "cutlass", "nvjet", "dot"),
    "normalisation": ("norm",),
    "optimizer": ("adam", "lerp", "addcdiv", "addcmul", "foreach"),
    "copies and casts": ("copy", "_to", "cat", "clone", "fill", "zero", "contiguous", "index", "memcpy", "memset"),
    "elementwise": ("mul", "add", "sub", "div", "gelu", "silu", "sigmoid", "elementwise", "softmax", "vectorized"),
}
TOP, WARM_UP, STEPS = 8, 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile every work of the profile, write the summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--trace", type=Path, help="a folder for traces")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-profile"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        found = profiled(*PROFILES[given.profile][given.one[0]], given.work, given.trace)
        Path(given.one[1]).write_text(json.dumps(found), encoding="utf-8")
        return
    suffix = "" if given.profile == "cpu" else f"_{given.profile}"
    command = "python -m benchmarks.profile_steps" + (f" --profile {given.profile}" if suffix else "")
    results: dict[str, Any] = {
        "circumstances": circumstances(command, "cuda" if given.profile == "gpu" else "cpu"),
        "works": {},
    }
    for name in PROFILES[given.profile]:
        results["works"][name] = _in_a_process(name, given)
        write(results, render(results), given.results / f"profile{suffix}.json")
    print(render(results))


def _in_a_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    given.work.mkdir(parents=True, exist_ok=True)
    out = given.work / "profile.json"
    command = [sys.executable, "-m", "benchmarks.profile_steps", "--profile", given.profile, "--work", str(given.work)]
    command += [*(["--trace", str(given.trace)] if given.trace else []), "--one", name, str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({} if given.profile == "gpu" else {"OMP_NUM_THREADS": "1"})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def profiled(kind: str, name: str, work: Path, trace: Path | None) -> dict[str, Any]:
    """Shares of ``KINDS``, the dearest operators and milliseconds of a step, over ``STEPS`` after the warm-up."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks import diffusion_profiles, vlm_models

    profiles: Any = diffusion_profiles.PROFILES if kind == "diffusion" else vlm_models.PROFILES
    cuda = profiles[name].device == "cuda"
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
    steps: list[int] = []

    def mark() -> None:
        if len(steps) == WARM_UP:
            profiler.start()
        if len(steps) == WARM_UP + STEPS:
            profiler.stop()
        steps.append(len(steps))

    (_diffusion if kind == "diffusion" else _vlm)(profiles[name], work / f"{kind}-{name}", mark)
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace / f"{kind}-{name}.json"))
    attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    spent = {event.key: getattr(event, attribute) / 1000 / STEPS for event in profiler.key_averages()}
    return summed(spent)


def _diffusion(profile: Any, work: Path, mark: Callable[[], None]) -> None:
    from dataclasses import replace

    from benchmarks.diffusion_peers import Enough
    from benchmarks.diffusion_profiles import prepare
    from benchmarks.diffusion_scripts import PEERS
    from benchmarks.diffusion_sides import our_config
    from benchmarks.peeking import watched_steps
    from mmalign.training.run import train

    profile = replace(profile, warm_up=WARM_UP, steps=STEPS)
    peer = PEERS["salesforce" if profile.name == "sdxl-full" else "diffusers"]
    config = our_config("cached", peer, profile, (*prepare(profile, work), work / "ours"))
    config = config.model_copy(update={"output": f"{config.output}-{os.getpid()}"})

    def step(number: int) -> None:
        mark()
        if number == WARM_UP + STEPS:
            raise Enough

    with watched_steps(step):
        try:
            train(config)
        except Enough:
            return


def _vlm(profile: Any, work: Path, mark: Callable[[], None]) -> None:
    from benchmarks.vlm_models import pairs
    from benchmarks.vlm_sides import SIDES

    steps = WARM_UP + STEPS
    folder = work / f"{os.getpid()}"
    SIDES["packed"](profile, pairs(profile, steps * profile.batch_size), steps, folder).train(mark)


def summed(spent: dict[str, float]) -> dict[str, Any]:
    """Milliseconds by operator as shares of kinds and a list of the dearest."""
    whole = sum(spent.values())
    kinds: Counter[str] = Counter()
    for name, milliseconds in spent.items():
        kinds[kind_of(name)] += milliseconds  # type: ignore[assignment] - a Counter of floats
    dearest = sorted(spent.items(), key=lambda item: -item[1])[:TOP]
    return {
        "step_milliseconds": whole,
        "shares": {kind: milliseconds / whole for kind, milliseconds in kinds.most_common()},
        "dearest": {name[:60]: milliseconds / whole for name, milliseconds in dearest},
    }


def kind_of(name: str) -> str:
    """The first of ``KINDS`` that one of its words names, else ``other``."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "other")


def render(results: dict[str, Any]) -> str:
    """Markdown, one section a work."""
    parts = [heading("Where the time of a step goes", results["circumstances"])]
    for name, found in results["works"].items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items() if share >= 0.005)
        parts += [f"## {name}\n", f"{found['step_milliseconds']:,.0f} ms a step: {shares}.\n"]
        parts += ["| operator | share of the step |", "|---|---|"]
        parts += [f"| `{operator}` | {share:.1%} |" for operator, share in found["dearest"].items()]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
