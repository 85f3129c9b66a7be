"""Scoring on a Ray cluster, for those who have one: the same chunks, the same function, the same files.

Ray is the extra ``mmalign[ray]``. Every actor opens the job for itself, so data, records and weights have to be on
storage that all nodes see under the same path.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mmalign.labelling.job import Job, OpenJob

WAIT_SECONDS = 1.0


def require_ray() -> None:
    """ValueError where Ray is not installed."""
    if find_spec("ray") is None or find_spec("ray.data") is None:
        raise ValueError("--ray needs Ray: pip install 'mmalign[ray]', or use accelerate launch without --ray")


class ChunkScorer:
    """A Ray actor: opens the job once, then scores chunk by chunk."""

    def __init__(self, job: Job) -> None:
        self.opened = OpenJob.open(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the chunks whose numbers are in ``batch["chunk"]``; the numbers come back."""
        self.opened.score([int(chunk) for chunk in batch["chunk"]])
        return batch


def score_on_ray(opened: OpenJob, workers: int, progress: Callable[[int], None] | None = None) -> None:
    """Score every chunk that is not recorded with ``workers`` actors, one GPU each where this machine has GPUs.

    A cluster that is running is found through Ray's own means (``RAY_ADDRESS``); else Ray starts one on this machine.
    """
    require_ray()
    ray: Any = import_module("ray")
    import_module("ray.data")

    missing = [chunk for chunk in opened.records.chunks if not opened.records.has(chunk)]
    if not missing:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    chunks = ray.data.from_items([{"chunk": chunk} for chunk in missing])
    scored = chunks.repartition(len(missing)).map_batches(
        ChunkScorer,
        fn_constructor_args=(opened.job,),
        batch_size=1,
        concurrency=min(workers, len(missing)),
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    for _ in scored.iter_rows():
        if progress is not None:
            progress(opened.rows_done())
