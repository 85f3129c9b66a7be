"""One model from rendered pictures to a pipeline folder with ``pretrain.json``."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmalign.playground.pretrain.frame import Progress
from mmalign.playground.pretrain.llava import LlavaSettings, pretrain_llava
from mmalign.playground.pretrain.pictures import render_dataset
from mmalign.playground.pretrain.sd3 import FlowSettings, pretrain_sd3
from mmalign.playground.pretrain.sdxl import Settings, pretrain_sdxl
from mmalign.playground.scene import LEVELS

AnySettings = Settings | FlowSettings | LlavaSettings
SETTINGS: dict[str, type[AnySettings]] = {
    "tiny-sdxl": Settings,
    "tiny-sd3": FlowSettings,
    "tiny-llava": LlavaSettings,
}


def pretrain(folder: Path, settings: AnySettings, device: torch.device) -> dict[str, object]:
    """Train the model whose ``settings`` these are; the folder then holds it, with settings, seconds and quality."""
    if isinstance(settings, LlavaSettings):
        return _pretrain_llava(folder, settings, device)
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.pt")
    pictures, captions = render_dataset(settings.images, settings.seed)
    print(f"rendered {len(captions)} pictures in {time.perf_counter() - started:.0f} s", flush=True)
    pictures = pictures.to(device)
    if isinstance(settings, FlowSettings):
        pipe = pretrain_sd3(folder, pictures, captions, settings, progress)
    else:
        pipe = pretrain_sdxl(folder, pictures, captions, settings, progress)
    seconds = time.perf_counter() - started
    pipe.to(device)
    quality = measure(pipe, settings)
    record = {"settings": asdict(settings), "device": str(device), "seconds": round(seconds), "quality": quality}
    pipe.to(device="cpu", dtype=torch.float16).save_pretrained(folder)
    (folder / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    progress.path.unlink(missing_ok=True)
    return record


def _pretrain_llava(folder: Path, settings: LlavaSettings, device: torch.device) -> dict[str, object]:
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.pt", every=100)
    model = pretrain_llava(folder, settings, device, progress)
    seconds = time.perf_counter() - started
    from mmalign.playground.pretrain.llava_folder import write_llava

    record = write_llava(folder, model, settings, {"device": str(device), "seconds": round(seconds)})
    progress.path.unlink(missing_ok=True)
    return record


def measure(pipe: Any, settings: Settings | FlowSettings, *, steps: int = 20) -> dict[str, dict[str, float]]:
    """Per level: share of right attributes and of pictures with all of them right, on held-out captions."""
    from mmalign.models import generate
    from mmalign.playground.oracle import judge_batch
    from mmalign.playground.scene import held_out_prompts

    results = {}
    for level in LEVELS:
        prompts = settings.judged_prompts if level == "single" else min(100, settings.judged_prompts)
        texts = held_out_prompts(level, prompts, settings.seed)
        pictures = generate(pipe, texts, list(range(len(texts))), steps=steps, guidance_scale=3.0, batch_size=64)
        verdicts = judge_batch(pictures, texts)
        results[level] = {
            "share": float(np.mean([verdict.share for verdict in verdicts])),
            "all_correct": float(np.mean([verdict.all_correct for verdict in verdicts])),
        }
        if level == "single":
            for name in verdicts[0].correct:
                results[level][name] = float(np.mean([verdict.correct[name] for verdict in verdicts]))
    return results
