"""One side of ``benchmarks.diffusion`` in its own process: what it says about given rows, and how long it takes."""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.diffusion_peers import Enough, checked, norm_of, run_peer
from benchmarks.diffusion_profiles import CLIP, DECAY, RATE, SEED, Profile, forced_noise, forced_timestep, moved
from benchmarks.diffusion_scripts import Peer, peer_of
from benchmarks.peeking import replaced, watched_steps
from benchmarks.recording import Moment, peak_rss_mib, sum_of

OURS = {"cached": "disk", "kept": "disk", "uncached": "none"}
CHECK_ROWS = 2


def check(side: str, script: Path | str, profile: Profile, folders: tuple[Path, Path, Path]) -> list[dict[str, float]]:
    """Loss and norm of the gradient of ``CHECK_ROWS`` rows, one after the other, with everything random given.

    In float32 whatever the profile's precision: DPO multiplies differences of errors by beta, and rounding with them.
    """
    peer, said = peer_of(script), []
    profile = replace(profile, batch_size=1, precision="no", compiled=False)
    torch.backends.cudnn.allow_tf32 = False
    if side == "peer" and isinstance(script, Path):
        with checked(peer, said, CHECK_ROWS) as mark:
            run_peer(script, profile, folders, mark, rate=0.0)
        return said
    from mmalign.training.images import ImageTask
    from mmalign.training.task import TRAIN, RowKey

    config = our_config(side, peer, profile, folders)
    task: Any = ImageTask.from_config(config)
    device = torch.device(profile.device)
    task.policy.to(device)
    task.prepare(device)
    moved(task.policy, lora=peer.lora)
    task.policy.train()
    for row in range(CHECK_ROWS):
        batch = task.collate([task.load(RowKey(TRAIN, row, row))]).to(device)
        task.policy.zero_grad()
        with _forced(row):
            loss = task.objective(task.score(task.policy, batch)).loss
        loss.backward()
        said.append({"loss": float(loss.detach()), "gradient_norm": norm_of(task.policy)})
    return said


def timed(side: str, script: Path | str, profile: Profile, folders: tuple[Path, Path, Path]) -> dict[str, Any]:
    """What the steps after the warm-up took, whole: reading, encoding, both forwards, backward, update, its own log."""
    marks: list[Moment] = []
    encoding: list[Moment] = []
    last = profile.warm_up + profile.steps
    started = Moment.now()

    def mark(step: int) -> None:
        if profile.device == "cuda":
            torch.cuda.synchronize()
            if step == profile.warm_up:
                torch.cuda.reset_peak_memory_stats()
        marks.append(Moment.now())
        if step == last:
            raise Enough

    if side == "peer" and isinstance(script, Path):
        run_peer(script, profile, folders, mark)
    else:
        _train(our_config(side, peer_of(script), profile, folders), mark, encoding)
    took = [later - earlier for earlier, later in pairwise(marks)][profile.warm_up :]
    result = {
        "step_seconds": statistics.median(moment.clock for moment in took),
        "step_cpu_seconds": statistics.median(moment.cpu for moment in took),
        "steps_seconds": [moment.clock for moment in took],
        "steps_cpu_seconds": [moment.cpu for moment in took],
        **(marks[0] - started - sum_of(encoding)).named("start_up"),
        **sum_of(encoding).named("encode"),
        "encoded_pairs": profile.rows if encoding else 0,
        "peak_rss_mib": peak_rss_mib(),
    }
    if profile.device == "cuda":
        result["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def our_config(side: str, peer: Peer, profile: Profile, folders: tuple[Path, Path, Path]) -> Any:
    """The run that does what the script does, without a cache, with latents and text cached, or scores kept too."""
    from mmalign.training.config import Config

    model, data, work = folders
    lora = {"rank": profile.rank, "alpha": profile.rank} if peer.lora else None
    low = profile.precision == "bf16"
    cache = {"cache": "disk", "cache_folder": str(work / "cache")} if OURS[side] == "disk" else {"cache": "none"}
    return Config.model_validate(
        {
            "model": {"name": str(model), "lora": lora, "dtype": "bfloat16" if low and lora else "float32"},
            "data": {"source": "pickapic", "path": str(data), "resolution": profile.shape.resolution, **cache},
            "reference": {"kind": "cached", "path": str(work / "scores")} if side == "kept" else {"kind": "auto"},
            "objective": [peer.objective],
            "training": {
                "steps": profile.warm_up + profile.steps + 1,
                "batch_size": profile.batch_size,
                "learning_rate": RATE,
                "optimizer": peer.optimizer,
                "weight_decay": DECAY,
                "max_grad_norm": CLIP if peer.max_grad_norm else None,
                "mixed_precision": profile.precision,
                "gradient_checkpointing": profile.checkpointing or peer.checkpoints,
                "compile": profile.compiled,
                "log_every": profile.rows,
                "seed": SEED,
            },
            "output": str(work / "run"),
        }
    )


def _train(config: Any, mark: Callable[[int], None], encoding: list[Moment]) -> None:
    """mmalign's own ``train``; ``encoding`` gets what filling caches took, which for kept scores is done before it."""
    from mmalign.training.cache_run import build_cache
    from mmalign.training.run import train

    with watched_steps(mark) as filled, contextlib.suppress(Enough):
        if config.reference.kind == "cached":
            build_cache(config)
        train(config)
    encoding += filled


@contextlib.contextmanager
def _forced(row: int) -> Iterator[None]:
    """The latents' mean, and the noise and timestep that the scripts are given."""
    from mmalign.adapters import diffusion
    from mmalign.training import images

    def drawn(rows: int, shape: Any, *_: Any, device: torch.device, dtype: torch.dtype) -> Any:
        noise = forced_noise(row, torch.Size(shape)).to(device, torch.promote_types(dtype, torch.float32))
        return torch.full((rows,), forced_timestep(row), device=device), noise.expand(rows, *shape)

    with replaced([(diffusion, "draw", drawn), (images, "draw", lambda mean, *_: mean)]):
        yield
