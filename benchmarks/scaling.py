"""What data parallelism costs from 8 to 512 GPUs, on paper: ``python -m benchmarks.scaling`` (a minute, no GPU).

Operations and weights are counted on the meta device; what links carry and how well a GPU is used are ``Machine``'s
fields, each an assumption that a run on such machines would replace. ``--write`` puts the tables into
``docs/scaling.md`` between its marks; a test holds the file to what this module gives.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
GPUS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Machine:
    """Bytes and operations per second and GPU: dense bf16 of an H100, NVLink and one 400 Gb/s card each way.

    ``used``: the share of ``operations`` that steps reach. ``reached``: of a link's rate. ``latency_seconds``: of one
    collective on one hop. ``jitter``: standard deviation of a step's time between GPUs, over its mean.
    """

    per_node: int = 8
    operations: float = 989e12
    used: float = 0.45
    inside: float = 450e9
    between: float = 50e9
    reached: float = 0.8
    latency_seconds: float = 15e-6
    jitter: float = 0.01


@dataclass(frozen=True)
class Work:
    """One step of one GPU. ``forward``: operations of a forward pass over what a pair needs.

    ``passes``: forward passes' worth of a pair: policy, reference, backward (1 under LoRA: gradients of weights are
    left out; 2 with them) and what checkpointing repeats. ``pair_bytes``: read from disk per pair, cached.
    """

    name: str
    strategy: str
    weights: float
    trained: float
    forward: float
    passes: float
    batch: int
    pair_bytes: float
    collectives: int

    @property
    def title(self) -> str:
        """What it is called in a table."""
        return f"{self.name}, {self.strategy}, {self.batch}"

    def compute_seconds(self, machine: Machine) -> float:
        """t = forward * passes * batch / (operations * used)."""
        return self.forward * self.passes * self.batch / (machine.operations * machine.used)

    def sent_bytes(self, gpus: int) -> float:
        """Sent by each GPU in a step.

        DDP, ring all-reduce of fp32 gradients: 2 (n - 1) / n * 4 * trained. FSDP2 over a flat mesh: the policy's bf16
        weights are gathered twice, the frozen reference's once, fp32 gradients are reduce-scattered:
        (n - 1) / n * (2 + 2 + 2 + 4) * weights.
        """
        share = (gpus - 1) / gpus
        return 2 * share * 4 * self.trained if self.strategy == "ddp" else share * 10 * self.weights

    def communication_seconds(self, gpus: int, machine: Machine) -> float:
        """Inside a node over NVLink; between nodes the ``per_node`` cards of a node carry a DDP ring's bytes together.

        DDP: a node sends what one GPU does, over all its cards. FSDP2's flat mesh sends every GPU's bytes across.
        """
        hops = math.ceil(math.log2(gpus)) * self.collectives * machine.latency_seconds
        inside = self.sent_bytes(min(gpus, machine.per_node)) / (machine.inside * machine.reached)
        if gpus <= machine.per_node:
            return inside + hops
        share = machine.per_node if self.strategy == "ddp" else 1
        return max(inside, self.sent_bytes(gpus) / (machine.between * machine.reached * share)) + hops

    def efficiency(self, gpus: int, machine: Machine) -> float:
        """t / (t * slowest + exposed).

        Slowest of n: 1 + jitter * sqrt(2 ln n). Exposed: what does not hide behind the backward (DDP: gradients come
        as it goes, the last bucket is not hidden, counted as a tenth) or behind all computing (FSDP2: the next block is
        gathered ahead, the first and last are not, counted as a twentieth).
        """
        compute, sent = self.compute_seconds(machine), self.communication_seconds(gpus, machine)
        ddp = self.strategy == "ddp"
        hidden, bare = (compute * 0.4, 0.1) if ddp else (compute * 0.9, 0.05)
        exposed = max(sent - hidden, bare * sent)
        return compute / (compute * (1 + machine.jitter * math.sqrt(2 * math.log(gpus))) + exposed)


@cache
def works() -> tuple[Work, ...]:
    """SDXL at 1024 px with LoRA and with all weights; LLaVA-1.5-7B with LoRA, rows packed."""
    import torch

    from benchmarks.sdxl_models import REAL, costs, unet_of
    from benchmarks.vlm_models import PROFILES, parameters_of
    from mmalign.models import make_trainable
    from mmalign.training.config import LoRAConfig

    forward = 2 * costs(REAL)["unet_forward_gflop"] * 1e9  # both pictures
    with torch.device("meta"):
        unet = unet_of(REAL)
        weights = sum(parameter.numel() for parameter in unet.parameters())
        lora = sum(parameter.numel() for parameter in make_trainable(unet, LoRAConfig(rank=16)))
    latent = (1024 // 8) ** 2 * 4
    picture = 2 * 2 * latent * 4 + (77 * 2048 + 1280) * 2  # mean and deviation in fp32 of both, text in bf16
    profile = PROFILES["llava-7b"]
    sizes = parameters_of(profile)
    language = sizes["all"] - sizes["vision"] - sizes["vocabulary"]
    tokens = profile.picture_tokens + profile.question_tokens + 2 * profile.answer_tokens
    vlm = 2 * language * tokens + 4 * 32 * 4096 * tokens**2  # weights, attention; vision tower and head are 3 % more
    width, inner, layers = 4096, 11008, 32
    vlm_lora = 16 * layers * (4 * 2 * width + 3 * (width + inner))
    jpeg = 100e3
    return (
        Work("SDXL DPO, LoRA r16", "ddp", weights, lora, forward, 3, 4, picture, 4),
        Work("SDXL DPO, all weights, checkpointed", "ddp", weights, weights, forward, 5, 8, picture, 400),
        Work("SDXL DPO, all weights, checkpointed", "fsdp2", weights, weights, forward, 5, 8, picture, 300),
        Work("SDXL DPO, all weights, checkpointed", "fsdp2", weights, weights, forward, 5, 1, picture, 300),
        Work("LLaVA-7B DPO, LoRA r16, checkpointed", "ddp", sizes["all"], vlm_lora, vlm, 4, 4, jpeg, 8),
    )


def tables(machine: Machine | None = None) -> str:
    """Markdown: what every step computes and sends, then how efficient each number of GPUs is."""
    machine = machine or Machine()
    heads = ["work", "strategy", "pairs per GPU", "trained, M", "computes, TFLOP", "computes for, s"]
    heads += ["sends at 8, GB", "at 512, GB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for work in works():
        lines.append(
            f"| {work.name} | {work.strategy} | {work.batch} | {work.trained / 1e6:,.1f} "
            f"| {work.forward * work.passes * work.batch / 1e12:,.0f} | {work.compute_seconds(machine):.2f} "
            f"| {work.sent_bytes(8) / 1e9:,.2f} | {work.sent_bytes(512) / 1e9:,.2f} |"
        )
    lines += ["", "Expected efficiency (pairs a second and GPU, over those of one GPU):", ""]
    lines += [f"| work, strategy, pairs per GPU | {' | '.join(map(str, GPUS))} |", "|---" * (len(GPUS) + 1) + "|"]
    for work in works():
        cells = " | ".join(f"{work.efficiency(gpus, machine):.0%}" for gpus in GPUS)
        lines.append(f"| {work.title} | {cells} |")
    lines += ["", "What all GPUs together see and read:", ""]
    lines += [
        f"| work, strategy, pairs per GPU | {' | '.join(f'pairs a step at {n}; GB/s' for n in (8, 64, 512))} |",
        "|---|---|---|---|",
    ]
    lines += [f"| {work.title} | {' | '.join(_reading(work, machine))} |" for work in works()]
    return "\n".join(lines)


def _reading(work: Work, machine: Machine) -> Iterator[str]:
    for gpus in (8, 64, 512):
        pairs = work.batch * gpus / work.compute_seconds(machine) * work.efficiency(gpus, machine)
        yield f"{work.batch * gpus:,}; {pairs * work.pair_bytes / 1e9:.2f}"


def rendered(text: str) -> str:
    """The document with its tables as they should be."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def main() -> None:
    """Show, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(rendered(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(tables())


if __name__ == "__main__":
    main()
