"""The README's table of speed against published code, from what ``benchmarks/results`` holds."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache_tables import ratio_interval

TRL = "TRL's DPOTrainer"
KEPT = "latents, text and reference scores kept on disk"
# Work, whose code it is compared with, table, and what ours is called there -> what to say of it.
WORK: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    (
        "VLM DPO, LoRA, 56 M, LLaVA's vocabulary (60 % of it)",
        TRL,
        "vlm_speed",
        {"packed": "", "kept": "reference scores kept on disk"},
    ),
    (
        "the same, vocabulary 4 % as in LLaVA-7B",
        TRL,
        "vlm_speed_56m_deep",
        {"packed": "", "kept": "reference scores kept"},
    ),
    (
        "SDXL DPO, LoRA, small",
        "diffusers' script",
        "diffusion_diffusers",
        {"uncached": "", "cached": "latents and text cached", "kept": KEPT},
    ),
    ("the same, compiled", "diffusers' script", "diffusion_diffusers_compiled", {"cached": "latents and text cached"}),
    (
        "SDXL MaPO, LoRA, small",
        "MaPO's script",
        "diffusion_mapo",
        {"uncached": "", "cached": "latents and text cached"},
    ),
    ("the same, compiled", "MaPO's script", "diffusion_mapo_compiled", {"cached": "latents and text cached"}),
    (
        "SDXL DPO, all weights, small",
        "Salesforce's script",
        "diffusion_salesforce",
        {"uncached": "", "cached": "latents and text cached", "kept": KEPT},
    ),
)


def speed(results: Path) -> str:
    """Markdown, a row a way of ours: how many times the peer's pairs per processor second, and its share of memory."""
    lines = [
        "| work | against | ours | times its pairs per processor second | times less memory |",
        "|---|---|---|---|---|",
    ]
    for work, peer, name, ways in WORK:
        path = results / f"{name}.json"
        if not path.exists():
            lines.append(f"| {work} | {peer} | not yet measured | | |")
            continue
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        title = f"[{work}](benchmarks/results/{name}.md)"
        for way, said in ways.items():
            ratios = [paired(runs, way, column) for column in ("step_cpu_seconds", "peak_rss_mib")]
            if ratios[0]:
                lines.append(f"| {title} | {peer} | {said} | {' | '.join(map(ratio_interval, ratios))} |")
                title = ""
    return "\n".join(lines)


def paired(runs: Sequence[Mapping[str, Any]], way: str, column: str) -> list[float]:
    """``column`` of the peer over that of ``way``, one for each repetition that has both."""
    name: Callable[[Mapping[str, Any]], str] = lambda run: run.get("variant") or run["side"]  # noqa: E731
    by = {(name(run), run["repetition"]): run[column] for run in runs}
    theirs = {number: value for (of, number), value in by.items() if of in ("trl", "peer")}
    return [value / by[way, number] for number, value in sorted(theirs.items()) if (way, number) in by]
