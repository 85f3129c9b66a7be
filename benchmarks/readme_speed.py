"""The README's table of speed against published code, from what ``benchmarks/results`` holds."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cache_tables import ratio_interval
from benchmarks.vlm_tables import ratios

TRL = "TRL's DPOTrainer"
CACHED, SCORES = "latents and text cached", "reference scores kept on disk"
KEPT = "latents, text and reference scores kept on disk"
# Work, whose code it is compared with, table, and what ours is called there -> what to say of it.
WORK: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    (
        "VLM DPO, LoRA, 56 M, LLaVA's vocabulary (60 % of it)",
        TRL,
        "vlm_speed",
        {"packed": "", "kept": SCORES},
    ),
    (
        "the same, vocabulary 4 % as in LLaVA-7B",
        TRL,
        "vlm_speed_56m_deep",
        {"packed": "", "kept": SCORES},
    ),
    (
        "SDXL DPO, LoRA, small",
        "diffusers' script",
        "diffusion_diffusers",
        {"uncached": "", "cached": CACHED, "kept": KEPT},
    ),
    ("the same, compiled", "diffusers' script", "diffusion_diffusers_compiled", {"cached": CACHED}),
    (
        "SDXL MaPO, LoRA, small",
        "MaPO's script",
        "diffusion_mapo",
        {"uncached": "", "cached": CACHED},
    ),
    ("the same, compiled", "MaPO's script", "diffusion_mapo_compiled", {"cached": CACHED}),
    (
        "SDXL DPO, all weights, small",
        "Salesforce's script",
        "diffusion_salesforce",
        {"uncached": "", "cached": CACHED, "kept": KEPT},
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
        key, slow = ("variant", "trl") if peer == TRL else ("side", "peer")
        title = f"[{work}](benchmarks/results/{name}.md)"
        for way, said in ways.items():
            found = [ratios(runs, slow, way, column, key=key) for column in ("step_cpu_seconds", "peak_rss_mib")]
            if found[0]:
                lines.append(f"| {title} | {peer} | {said} | {' | '.join(map(ratio_interval, found))} |")
                title = ""
    return "\n".join(lines)
