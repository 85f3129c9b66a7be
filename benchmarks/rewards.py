"""Pictures scored in a second: in batches against one call a picture, and two rewards on one backbone.

    python -m benchmarks.rewards                                        # ViT-B-32 of random weights, CPU, one thread
    python -m benchmarks.rewards --model ViT-H-14 --device cuda --dtype bfloat16 --pictures 512 --batch-sizes 1 16 64

Weights are random: speed does not depend on them. Seconds on the clock and of the processor are recorded, because on a
shared machine the clock says little. Results are added to ``benchmarks/results/rewards.json``, rendered beside it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from mmalign.rewards import score_many
from reward_models.clip_towers import ClipTowers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.weights import find_device, find_dtype

RESULTS = Path("benchmarks/results")
# text width, layers, heads; image width, layers, heads; patch; joint width
MODELS = {
    "ViT-B-32": (512, 12, 8, 768, 12, 12, 32, 512),
    "ViT-L-14": (768, 12, 12, 1024, 24, 16, 14, 768),
    "ViT-H-14": (1024, 24, 16, 1280, 32, 16, 14, 1024),
}


def towers(name: str, device: str | None, dtype: str) -> ClipTowers:
    """A CLIP of that size with random weights."""
    text, text_layers, text_heads, image, image_layers, image_heads, patch, joint = MODELS[name]
    config = CLIPConfig(
        projection_dim=joint,
        text_config=_tower(text, text_layers, text_heads),
        vision_config={**_tower(image, image_layers, image_heads), "patch_size": patch},
    )
    place, kind = find_device(device), find_dtype(dtype)
    torch.manual_seed(0)
    model: Any = CLIPModel(config)
    model = model.to(place, kind).eval().requires_grad_(False)
    return ClipTowers(model, f"random {name} {dtype} {place}", place, kind, 224)


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def reward(model: ClipTowers, name: str, batch_size: int) -> CosineReward:
    """A plain cosine on those towers, which are not loaded again."""
    about: dict[str, Any] = {"scale": "cosine", "version": "random", "licence": "none", "source": "random weights"}
    return CosineReward(name=name, towers=model, preprocess=Preprocess(), batch_size=batch_size, **about)


def measured(work: Callable[[], Any], pictures: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median over ``repeats`` of clock and processor seconds, as pictures a second."""
    clock, processor = [], []
    for _ in range(repeats + 1):
        began, spent = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    # The first round warms up.
    return {
        "pictures_per_second": round(pictures / statistics.median(clock[1:]), 2),
        "pictures_per_cpu_second": round(pictures / statistics.median(processor[1:]), 2),
    }


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a way of scoring the same pictures."""
    model = towers(arguments.model, arguments.device, arguments.dtype)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (arguments.pictures, arguments.side, arguments.side, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in pixels]
    prompts = [f"a picture of {number} things, oil on canvas" for number in range(len(images))]
    one = reward(model, "one", 1)

    def call_by_call() -> None:
        for prompt, image in zip(prompts, images, strict=True):
            one.score([prompt], [image])

    ways: list[tuple[str, Callable[[], Any]]] = [("one call a picture", call_by_call)]
    for size in arguments.batch_sizes:
        batched = reward(model, "batched", size)
        ways.append((f"batches of {size}", lambda batched=batched: batched.score(prompts, images)))
    size = max(arguments.batch_sizes)
    first, second = reward(model, "first", size), reward(model, "second", size)
    same = [prompts[0]] * len(images)
    ways += [
        (f"batches of {size}, one prompt for all", lambda: first.score(same, images)),
        (
            f"two rewards, batches of {size}, each alone",
            lambda: (first.score(same, images), second.score(same, images)),
        ),
        (f"two rewards, batches of {size}, one backbone", lambda: score_many([first, second], same, images)),
    ]
    told = {"model": arguments.model, "device": str(model.device), "dtype": arguments.dtype, "side": arguments.side}
    rows = []
    for way, work in ways:
        row = {"way": way, **told, **measured(work, len(images), arguments.repeats, model.device)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def render(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row a way."""
    lines = [
        "| model | device | way | pictures a second | pictures a processor second | times one call a picture |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        base = next(
            other
            for other in results
            if other["way"] == "one call a picture"
            and other["model"] == row["model"]
            and other["device"] == row["device"]
        )
        clock = "cpu" not in row["device"]
        key = "pictures_per_second" if clock else "pictures_per_cpu_second"
        lines.append(
            f"| {row['model']} {row['dtype']} | {row['machine']}, {row['device']} | {row['way']} "
            f"| {row['pictures_per_second']} | {row['pictures_per_cpu_second']} | {row[key] / base[key]:.2f} |"
        )
    note = (
        "Random weights, pictures {side} px, preprocessing included, decoding not. The last column compares processor "
        "seconds on a CPU and the clock on a GPU. With two rewards a picture counts once.\n"
    )
    return "\n".join(lines) + "\n\n" + note.format(side=results[0]["side"])


def main() -> None:
    """Measure, add to the record, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="ViT-B-32")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--side", type=int, default=512, help="width and height of the pictures")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} cores"
    if find_device(arguments.device).type == "cuda":
        machine = torch.cuda.get_device_name()
    rows = [{**row, "machine": machine, "commit": commit} for row in rows_of(arguments)]
    arguments.results.mkdir(parents=True, exist_ok=True)
    record = arguments.results / "rewards.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    fresh = {(row["model"], row["device"], row["dtype"]) for row in rows}
    results = [row for row in known if (row["model"], row["device"], row["dtype"]) not in fresh] + rows
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "rewards.md").write_text(render(results), encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
