"""Scoring on a Ray cluster, for those who have one: the same chunks, the same function, the same files.

Ray is the extra ``mmalign[ray]``. Every actor opens the job for itself, so data, records and weights have to be on
storage that all nodes see under the same path.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mmalign.labelling.job import Job, OpenJob


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

    A cluster that is running is found through Ray's own means (``RAY_ADDRESS``); else Ray starts one on this machine,
    which ends with the scoring, and tells nobody about it.
    """
    require_ray()
    missing = [chunk for chunk in opened.records.chunks if not opened.records.has(chunk)]
    if not missing:
        return
    workers = min(workers, len(missing))
    with _cluster(workers) as ray:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # A block for each chunk, so that a worker is handed the next one when it has finished one.
        chunks = ray.data.from_items([{"chunk": chunk} for chunk in missing], override_num_blocks=len(missing))
        scored = chunks.map_batches(
            ChunkScorer,
            fn_constructor_args=(opened.job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if torch.cuda.is_available() else 0,
        )
        for _ in scored.iter_rows():
            if progress is not None:
                progress(opened.rows_done())


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Ray, connected. A cluster of this machine alone has room for all workers, however few cores there are."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    import_module("ray.data")
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()
