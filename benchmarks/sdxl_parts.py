"""What the parts of a diffusion step cost by themselves: ``python -m benchmarks.sdxl_parts`` (a minute, one thread).

Policy forward and backward, the reference's forward and the encoding of a pair, in the usual layout of memory and with
channels last; and, counted, how much of a forward pass comes before the first LoRA, which policy and reference could
share. Results: ``benchmarks/results/sdxl_parts.{json,md}``.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.mfu import now
from benchmarks.recording import RESULTS, circumstances, heading, write
from benchmarks.sdxl_models import MID, REAL, TINY, VAE_FACTOR, Shape, operations, unet_of, vae_of
from mmalign.models import make_trainable
from mmalign.training.config import LoRAConfig

SHAPES = {"mid": MID, "tiny": TINY, "real": REAL}
LAYOUTS = {"usual": torch.contiguous_format, "channels last": torch.channels_last}
PARTS = ("policy, forward and backward", "reference, forward", "encoding a pair")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = f"python -m benchmarks.sdxl_parts --shape {given.shape} --device {given.device}"
    results = {
        "circumstances": circumstances(command, given.device),
        "seconds": {name: parts(SHAPES[given.shape], layout, given) for name, layout in LAYOUTS.items()},
        "shared": shared(REAL),
    }
    suffix = "" if (given.shape, given.device) == ("mid", "cpu") else f"_{given.shape}_{given.device}"
    write(results, render(results), given.results / f"sdxl_parts{suffix}.json")
    print(render(results))


def parts(shape: Shape, layout: torch.memory_format, given: argparse.Namespace) -> dict[str, float]:
    """Median seconds of ``PARTS`` for one pair; of the processor on a CPU."""
    device, dtype = given.device, torch.bfloat16 if given.device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        unet: Any = unet_of(shape).to(dtype)
        vae: Any = vae_of(shape).eval().requires_grad_(False)
        make_trainable(unet, LoRAConfig(rank=8))
        unet.train().to(memory_format=layout)
        vae.to(memory_format=layout)
        side = shape.resolution // VAE_FACTOR
        noisy = torch.randn(2, 4, side, side, dtype=dtype).to(memory_format=layout)
        pixels = torch.randn(2, 3, shape.resolution, shape.resolution).to(memory_format=layout)
        text, times = torch.randn(2, 77, shape.text_width, dtype=dtype), torch.tensor([500.0, 500.0])
        more = {"text_embeds": torch.randn(2, shape.text[1][0], dtype=dtype), "time_ids": torch.randn(2, 6)}

    def predict() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return unet(noisy, times, text, added_cond_kwargs=more).sample

    def policy() -> None:
        unet.zero_grad()
        predict().float().square().mean().backward()

    def reference() -> None:
        unet.disable_adapters()
        with torch.no_grad():
            predict()
        unet.enable_adapters()

    def encode() -> None:
        with torch.no_grad():
            vae.encode(pixels)

    return {name: _median(call, given) for name, call in zip(PARTS, (policy, reference, encode), strict=True)}


def _median(call: Callable[[], None], given: argparse.Namespace) -> float:
    taken = []
    for _ in range(given.repeats + 1):  # the first warms up
        began = now(given.device)
        call()
        taken.append(now(given.device) - began)
    return statistics.median(taken[1:])


def shared(shape: Shape) -> float:
    """The share of a forward pass's operations that comes before the first attention, where the first LoRA is."""
    with torch.device("meta"):
        unet: Any = unet_of(shape)
        side = shape.resolution // VAE_FACTOR
        noisy, text = torch.empty(1, 4, side, side), torch.empty(1, 77, shape.text_width)
        more = {"text_embeds": torch.empty(1, shape.text[1][0]), "time_ids": torch.empty(1, 6)}
        embedding = torch.empty(1, 4 * shape.widths[0])
        before = operations(
            lambda: unet.down_blocks[1].resnets[0](unet.down_blocks[0](unet.conv_in(noisy), embedding)[0], embedding)
        )
        whole = operations(lambda: unet(noisy, torch.empty(1), text, added_cond_kwargs=more))
    return before / whole


def render(results: dict[str, Any]) -> str:
    """Markdown: seconds by part and layout, and what could be shared."""
    layouts = list(results["seconds"])
    lines = [heading("Parts of a diffusion step", results["circumstances"])]
    lines += [f"| seconds for a pair | {' | '.join(layouts)} |", "|---" * (len(layouts) + 1) + "|"]
    for part in PARTS:
        lines.append(f"| {part} | {' | '.join(format(results['seconds'][name][part], '.3f') for name in layouts)} |")
    lines += ["", f"Before SDXL's first LoRA comes {results['shared']:.1%} of a forward pass at 1024 px (counted)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
