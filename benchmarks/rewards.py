"""Pictures scored in a second: in batches, call by call, and as a package does that reads its weights for every call.

    python -m benchmarks.rewards                                        # ViT-B-32 of random weights, CPU, one thread
    python -m benchmarks.rewards --model ViT-H-14 --device cuda --dtype bfloat16 --pictures 512 --batch-sizes 1 16 64

Weights are random: speed does not depend on them. ``hpsv2.score`` of the hpsv2 package (1.2.0, img_score.py) reads its
checkpoint again in every call and scores one picture at a time; that way is measured on ``--reloads`` pictures.
``forward alone`` is what the model itself can do: pixels and tokens lie ready on the device. ``decoding alone`` is what
the reading of JPEG files with four threads can do, and ``files`` is ``mmalign score`` itself: data-loading bound is
where it comes near the smaller of these two. Seconds on the clock and of the processor are recorded, because on a
shared machine the clock says little. Results are added to ``benchmarks/results/rewards.json``, rendered beside it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from benchmarks import recording
from mmalign.rewards import score_many
from mmalign.rewards.prompt_files import Scored
from mmalign.rewards.scoring import decoded_batches, score_folder
from reward_models.clip_towers import ClipTowers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.weights import find_device, find_dtype

CALLS, FORWARD = "one call a picture", "forward alone"
# text width, layers, heads; image width, layers, heads; patch; joint width
MODELS = {
    "tiny": (64, 2, 2, 64, 2, 2, 32, 32),
    "ViT-B-32": (512, 12, 8, 768, 12, 12, 32, 512),
    "ViT-L-14": (768, 12, 12, 1024, 24, 16, 14, 768),
    "ViT-H-14": (1024, 24, 16, 1280, 32, 16, 14, 1024),
}


@dataclass(frozen=True)
class Way:
    """``work`` scores ``pictures`` pictures."""

    name: str
    work: Callable[[], Any]
    pictures: int


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


def measured(way: Way, repeats: int, device: torch.device) -> dict[str, float]:
    """Median over ``repeats`` of clock and processor seconds, as pictures a second; one more round warms up."""
    clock, processor = [], []
    for _ in range(repeats + 1):
        began, spent = time.perf_counter(), time.process_time()
        way.work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return {
        "pictures_per_second": round(way.pictures / statistics.median(clock[1:]), 2),
        "pictures_per_cpu_second": round(way.pictures / statistics.median(processor[1:]), 2),
    }


@contextmanager
def ways(arguments: argparse.Namespace, model: ClipTowers) -> Iterator[list[Way]]:
    """Every way of scoring the same pictures; files that some need live as long as this."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (arguments.pictures, arguments.side, arguments.side, 3), dtype=np.uint8
    )
    images = [Image.fromarray(each) for each in pixels]
    prompts = [f"a picture of {number} things, oil on canvas" for number in range(len(images))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield [
            _reloading(model, folder, prompts[: arguments.reloads], images[: arguments.reloads]),
            *_batches(model, arguments.batch_sizes, prompts, images),
            *_two(model, max(arguments.batch_sizes), prompts, images),
            *_files(model, max(arguments.batch_sizes), folder, prompts, images),
            _forward(model, max(arguments.batch_sizes), prompts, images),
        ]


def _reloading(model: ClipTowers, folder: Path, prompts: Sequence[str], images: Sequence[Image.Image]) -> Way:
    file, one = folder / "checkpoint.pt", reward(model, "one", 1)
    torch.save({"state_dict": model.model.state_dict()}, file)

    def work() -> None:
        for prompt, image in zip(prompts, images, strict=True):
            model.model.load_state_dict(torch.load(file, map_location=model.device, weights_only=True)["state_dict"])
            one.score([prompt], [image])

    return Way("one call a picture, weights read in every call", work, len(images))


def _batches(
    model: ClipTowers, sizes: Sequence[int], prompts: Sequence[str], images: Sequence[Image.Image]
) -> Iterator[Way]:
    one = reward(model, "one", 1)

    def call_by_call() -> None:
        for prompt, image in zip(prompts, images, strict=True):
            one.score([prompt], [image])

    yield Way(CALLS, call_by_call, len(images))
    for size in sizes:
        batched = reward(model, "batched", size)
        yield Way(f"batches of {size}", lambda batched=batched: batched.score(prompts, images), len(images))


def _two(model: ClipTowers, size: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> Iterator[Way]:
    """Two rewards, with one prompt for all pictures: a picture counts once."""
    first, second, same = reward(model, "first", size), reward(model, "second", size), [prompts[0]] * len(images)

    def alone() -> None:
        first.score(same, images)
        second.score(same, images)

    yield Way(f"batches of {size}, one prompt for all", lambda: first.score(same, images), len(images))
    yield Way(f"two rewards, batches of {size}, each alone", alone, len(images))
    yield Way(
        f"two rewards, batches of {size}, one backbone", lambda: score_many([first, second], same, images), len(images)
    )


def _files(
    model: ClipTowers, size: int, folder: Path, prompts: Sequence[str], images: Sequence[Image.Image]
) -> Iterator[Way]:
    """``mmalign score`` on JPEG files, and what it could do if the model took no time."""
    rows = [Scored(f"{number:05d}.jpg", prompt) for number, prompt in enumerate(prompts)]
    for row, image in zip(rows, images, strict=True):
        image.save(folder / row.image, quality=90)
    scorer, out = reward(model, "files", size), folder / "scores.jsonl"

    def score() -> None:
        out.unlink(missing_ok=True)
        score_folder([scorer], folder, rows, out, batch_size=size)

    def decode() -> None:
        for _ in decoded_batches(folder, rows, size):
            pass

    yield Way(f"files, mmalign score, batches of {size}", score, len(rows))
    yield Way("decoding alone", decode, len(rows))


def _forward(model: ClipTowers, size: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> Way:
    scorer = reward(model, "forward", size)
    pixels = scorer.preprocess.pictures(images).to(model.device, model.dtype).split(size)
    ids = scorer.tokens(prompts).to(model.device).split(size)

    def work() -> None:
        with torch.no_grad():
            for of_pixels, of_ids in zip(pixels, ids, strict=True):
                model.image_features(of_pixels)
                model.text_features(of_ids)

    return Way(FORWARD, work, len(images))


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a way of scoring the same pictures."""
    model = towers(arguments.model, arguments.device, arguments.dtype)
    told = {"model": arguments.model, "device": str(model.device), "dtype": arguments.dtype, "side": arguments.side}
    rows = []
    with ways(arguments, model) as measurable:
        for way in measurable:
            row = {"way": way.name, **told, **measured(way, arguments.repeats, model.device)}
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def render(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row a way."""
    lines = [
        "| model | machine | way | pictures a second | pictures a processor second | times one call a picture "
        "| share of forward alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        key = "pictures_per_cpu_second" if "cpu" in row["device"] else "pictures_per_second"
        ratios = [_ratio(results, row, to, key) for to in (CALLS, FORWARD)]
        lines.append(
            f"| {row['model']} {row['dtype']} | {row['machine']}, {row['device']} | {row['way']} "
            f"| {row['pictures_per_second']} | {row['pictures_per_cpu_second']} | {' | '.join(ratios)} |"
        )
    sides = ", ".join(str(side) for side in sorted({row["side"] for row in results}))
    note = (
        f"Random weights, pictures of {sides} px; preprocessing included but in forward alone, decoding only where "
        "files are named. The last columns compare processor seconds on a CPU and the clock on a GPU. With two rewards "
        "a picture counts once.\n"
    )
    return "\n".join(lines) + "\n\n" + note


def _ratio(results: Sequence[dict[str, Any]], row: dict[str, Any], to: str, key: str) -> str:
    same = ("model", "device", "dtype")
    base = next((one for one in results if one["way"] == to and all(one[name] == row[name] for name in same)), None)
    return "" if base is None else f"{row[key] / base[key]:.2f}"


def main() -> None:
    """Measure, add to the record, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="ViT-B-32")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--reloads", type=int, default=2, help="pictures of the way that reads weights in every call")
    parser.add_argument("--side", type=int, default=512, help="width and height of the pictures")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=recording.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = {"machine": recording.hardware(arguments.device.partition(":")[0]), "commit": recording.commit()}
    rows = [{**row, **about} for row in rows_of(arguments)]
    record = arguments.results / "rewards.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    fresh = {(row["model"], row["device"], row["dtype"]) for row in rows}
    results = [row for row in known if (row["model"], row["device"], row["dtype"]) not in fresh] + rows
    recording.write(results, render(results), record)
    print(render(results))


if __name__ == "__main__":
    main()
