"""One variant of ``benchmarks.vlm`` in its own process: what it says about the same rows, and how fast it trains."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.recording import Moment, peak_rss_mib
from benchmarks.vlm_models import LINEAR, Profile, model_of, pairs, prepare, processor_of
from benchmarks.vlm_settings import BETA, CLIP, DECAY, RATE, SEED, Side, autocast
from benchmarks.vlm_trl import trl_side
from mmalign.types import VLMPair

OURS = {"packed": "always", "kept": "always", "padded": "never"}
"""Variant -> ``vlm.pack``. ``kept`` reads the reference's scores from disk, computed before the first step."""
VARIANTS = (*OURS, "trl")
CHECK_ROWS = 2
NEEDED = ("trl", "datasets")


def why_missing(variant: str) -> str | None:
    """Why ``variant`` cannot be run here, or None."""
    missing = [name for name in NEEDED if find_spec(name) is None] if variant == "trl" else []
    if missing:
        return f"{' and '.join(missing)} not installed; pip install 'mmalign[bench]'"
    return None


def check(variant: str, profile: Profile, folder: Path) -> dict[str, Any]:
    """Loss and log-probs before the first step, and again, with the norm of the gradient, under a LoRA that is not 0.

    The rows have answers of several lengths; every variant is given the same LoRA.
    """
    side = SIDES[variant](profile, pairs(profile, CHECK_ROWS, seed=1, uneven=True), 1, folder)
    side.modules.train()
    with torch.no_grad():
        before = _said(*side.step_0())
    set_lora(side.modules)
    loss, scores = side.step_0()
    loss.backward()
    gradients = [value.grad for value in side.modules.parameters() if value.grad is not None]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    return {"step_0": before, "moved": {**_said(loss.detach(), scores), "gradient_norm": norm}}


def set_lora(modules: nn.Module) -> None:
    """Give every LoRA matrix values that follow from its place in the language model alone, whatever it is called."""
    for name, parameter in modules.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            place, _, rest = name[name.index("layers.") :].partition(".lora_")
            seed = int.from_bytes(hashlib.sha256(f"{place} {rest[0]}".encode()).digest()[:7], "big")
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.data.copy_(values * (parameter.shape[1] ** -0.5 if rest[0] == "A" else 0.02))


def timed(variant: str, profile: Profile, folder: Path) -> dict[str, Any]:
    """What the steps after the warm-up took: loading rows, both forwards, backward and update, without logging."""
    steps = profile.warm_up + profile.steps
    moments: list[Moment] = []
    ready: list[float] = []

    def mark() -> None:
        cuda = profile.device == "cuda"
        if cuda:
            torch.cuda.synchronize()
            if len(moments) == profile.warm_up:
                torch.cuda.reset_peak_memory_stats()
        if not moments:
            ready.append(peak_rss_mib())
        moments.append(Moment.now())

    side = SIDES[variant](profile, pairs(profile, steps * profile.batch_size), steps, folder)
    ahead = Moment.now()
    if side.ahead is not None:
        side.ahead()
    spent = (Moment.now() - ahead) / steps
    side.train(mark)
    if len(moments) != steps + 1:
        raise SystemExit(f"{variant}: {len(moments) - 1} steps were done, {steps} asked for")
    took = [later - earlier for earlier, later in pairwise(moments)][profile.warm_up :]
    clock, cpu = (sum(column) / len(took) for column in zip(*took, strict=True))
    result = {
        "step_seconds": clock,
        "step_cpu_seconds": cpu,
        "pairs_per_second": profile.batch_size / clock,
        "pairs_per_cpu_second": profile.batch_size / cpu,
        "steps_cpu_seconds": [moment.cpu for moment in took],
        "peak_rss_mib": peak_rss_mib(),
        "rss_before_training_mib": ready[0],
        **spent.named("ahead"),
    }
    if profile.device == "cuda":
        result["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def _said(loss: Tensor, scores: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"loss": float(loss), **{name: value.detach().float().tolist() for name, value in scores.items()}}


def _ours(variant: str) -> Callable[[Profile, Sequence[VLMPair], int, Path], Side]:
    def make(profile: Profile, rows: Sequence[VLMPair], steps: int, folder: Path) -> Side:
        from mmalign.models.vlm import VLMComponents
        from mmalign.models.vlm_names import peek_vlm
        from mmalign.training.kept_scores_build import build_scores
        from mmalign.training.task import TRAIN, RowKey
        from mmalign.training.trainer import Trainer
        from mmalign.training.vlm_branches import checked_vlm_objective
        from mmalign.training.vlm_data import VLMData
        from mmalign.training.vlms import VLMTask
        from mmalign.vlm_data import table_of

        config = _our_config(profile, variant, steps, folder)
        components = VLMComponents(peek_vlm(config.model), model_of(profile), processor_of(profile))
        objective = checked_vlm_objective(config)
        task = VLMTask(config, VLMData({TRAIN: table_of(list(rows))}, "rows"), components, objective)

        def step_0() -> tuple[Tensor, dict[str, Tensor]]:
            task.prepare(torch.device(profile.device))
            batch = task.collate([task.load(RowKey(TRAIN, index, index)) for index in range(len(rows))])
            if batch.unusable:
                raise SystemExit(f"rows that cannot be used: {dict(batch.unusable)}")
            with autocast(profile):
                scores = task.score(task.policy, batch.to(torch.device(profile.device)))
            named = {f"{side}_logp": scores[side].logp for side in ("chosen", "rejected")}
            named |= {f"ref_{side}_logp": scores[side].ref_logp for side in ("chosen", "rejected")}
            return task.objective(scores).loss, named

        def train(mark: Callable[[], None]) -> None:
            with _marked(Trainer, mark):
                Trainer(config, task, folder=folder / "run", console=Console(quiet=True)).fit()

        def ahead() -> None:
            build_scores(config, task)

        return Side(task.policy, step_0, train, ahead if variant == "kept" else None)

    return make


def _our_config(profile: Profile, variant: str, steps: int, folder: Path) -> Any:
    from mmalign.training.config import Config

    scores = {"kind": "cached", "path": str(folder / f"scores-{uuid4().hex[:8]}")}
    lora = {"rank": profile.rank, "alpha": profile.rank, "targets": list(LINEAR)}
    return Config.model_validate(
        {
            "family": "vlm",
            "model": {"name": str(prepare(profile, folder / "model")), "lora": lora, "dtype": profile.dtype},
            "data": {"source": "vlm_canonical", "path": "rows.parquet"},
            "objective": [{"loss": "dpo", "beta": BETA}],
            **({"reference": scores} if variant == "kept" else {}),
            "training": {
                "steps": steps,
                "batch_size": profile.batch_size,
                "learning_rate": RATE,
                "weight_decay": DECAY,
                "max_grad_norm": CLIP,
                "mixed_precision": "no" if profile.dtype == "float32" else "bf16",
                "gradient_checkpointing": profile.checkpointing,
                "log_every": steps,
                "seed": SEED,
            },
            "vlm": {"pack": OURS[variant], "max_length": 4096},
            "output": str(folder / "run"),
        }
    )


@contextmanager
def _marked(trainer: Any, mark: Callable[[], None]) -> Iterator[None]:
    """``mark`` is called before the first step and after every step."""
    step, started = trainer._step, []

    def marked(*arguments: Any) -> None:
        if not started:
            mark()
            started.append(True)
        step(*arguments)
        mark()

    trainer._step = marked
    try:
        yield
    finally:
        trainer._step = step


SIDES: dict[str, Callable[[Profile, Sequence[VLMPair], int, Path], Side]] = {
    **{name: _ours(name) for name in OURS},
    "trl": trl_side,
}
