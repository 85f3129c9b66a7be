"""Reference scores that are kept on disk (``reference: cached``): what they depend on, whatever the family."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.caches import FileHashes
from mmalign.caches.files import size_text
from mmalign.references import CachedReference, Reference
from mmalign.references.cached import HASHES, Visit
from mmalign.training.config import Config
from mmalign.training.task import RowKey

# Settings that no score of a reference depends on: how the policy is trained, and how and where things are kept. What
# is not listed here is taken to matter: a new setting can cost computing scores again, but gives no wrong ones.
_OF_TRAINING = frozenset(
    {
        "steps",
        "batch_size",
        "accumulation",
        "learning_rate",
        "optimizer",
        "betas",
        "weight_decay",
        "schedule",
        "warmup_steps",
        "max_grad_norm",
        "gradient_checkpointing",
        "ema",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "workers",
        "trackers",
        "strategy",
        "seed",  # part of every visit's own seed
    }
)
_LINE_BYTES, _NAME_BYTES, _NUMBER_BYTES, _ROW_BYTES = 110, 8, 21, 62  # of the JSON that CachedReference writes
_OF_DATA = frozenset({"path", "images", "cache", "cache_folder", "max_corrupt", "verify", "shuffle", "shuffle_window"})
_OF_MODEL = frozenset({"lora", "adapter", "name", "offload"})  # the reference's fingerprint stands for its weights


def with_kept_scores(
    reference: Reference, config: Config, rows: str, branches: Sequence[str], identity: Mapping[str, Any]
) -> CachedReference:
    """``reference`` with its scores in ``reference.path``; ValueError naming what differs where others are there.

    ``rows``: fingerprint of the data. ``identity``: what makes the model's inputs of a row, which the family knows.
    """
    assert config.reference.path is not None
    settings = {
        **_but(config.model.model_dump(mode="json"), _OF_MODEL, "model"),
        **_but(config.data.model_dump(mode="json"), _OF_DATA, "data"),
        **_but(config.training.model_dump(mode="json"), _OF_TRAINING, "training"),
        "rows": rows,
        "branches": list(branches),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **identity,
    }
    return CachedReference(reference, Path(config.reference.path), settings)


def file_hashes(config: Config) -> FileHashes:
    """Hashes of weight files, remembered in the folder of the scores."""
    assert config.reference.path is not None
    return FileHashes(Path(config.reference.path) / HASHES)


def visits(keys: Sequence[RowKey]) -> list[Visit]:
    """A batch's visits, by which its scores are found again."""
    return [(key.split, key.index, key.seed) for key in keys]


def scores_bytes(config: Config, branches: Sequence[str]) -> int:
    """What the scores of one micro-batch take on disk, at most about: a line of JSON."""
    rows = config.training.batch_size
    marks = _ROW_BYTES * rows if config.family == "vlm" else 0
    return _LINE_BYTES + marks + sum(len(branch) + _NAME_BYTES + _NUMBER_BYTES * rows for branch in branches)


def scores_size(config: Config, held_out: int, branches: Sequence[str], processes: int) -> str:
    """What the scores of a run take on disk, for the plan; ``held_out``: number of such rows."""
    training = config.training
    batches = training.steps * training.accumulation * processes
    if config.evaluation.every is not None:
        batches += -(-held_out // training.batch_size)
    size = size_text(batches * scores_bytes(config, branches))
    return (
        f"{size} in {config.reference.path} for the scores of {batches:,} micro-batches of {training.batch_size} "
        f"({', '.join(branches)}), less what is there already; mmalign cache build computes them ahead"
    )


def _but(section: dict[str, Any], without: frozenset[str], prefix: str) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in section.items() if name not in without}
