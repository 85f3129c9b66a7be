"""Whether a checkpoint may be continued by this configuration, data, reference and number of processes."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmalign.training.checkpoint import Checkpoint
from mmalign.training.config import Config

# Settings that change neither what was learnt so far nor what is learnt next. ``training.steps`` may grow; batch size
# and accumulation may change as long as the global batch stays (see _refuse_other_batch).
HARMLESS = frozenset(
    {
        "output",
        "data.cache",
        "data.cache_folder",
        "evaluation.pictures",
        "training.accumulation",
        "training.batch_size",
        "training.checkpoint_every",
        "training.compile",
        "training.gradient_checkpointing",
        "training.guard",
        "training.keep_checkpoints",
        "training.log_every",
        "training.steps",
        "training.strategy",
        "training.trackers",
        "training.workers",
    }
)


def refuse_other_run(
    checkpoint: Checkpoint,
    config: Config,
    *,
    rows_per_step: int,
    rows: Mapping[str, int],
    reference: str | None,
    exported: bool = True,
) -> None:
    """ValueError that lists every reason why ``checkpoint`` belongs to another run.

    ``rows``: rows by split; ``reference``: its fingerprint. ``exported``: whether the trained model was written;
    without it, a run that has all its steps still has something to do.
    """
    state = checkpoint.state
    reasons = [
        f"{key}: {_shown(old)} then, {_shown(new)} now"
        for key, old, new in differences(state["config"], config.model_dump(mode="json"))
        if not any(key == harmless or key.startswith(harmless + ".") for harmless in HARMLESS)
    ]
    if config.training.steps < checkpoint.step or (exported and config.training.steps == checkpoint.step):
        reasons.append(
            f"training.steps: {config.training.steps} now, but the run has {checkpoint.step} steps already; "
            "for more, give a larger number"
        )
    if state["rows_per_step"] != rows_per_step:
        reasons.append(
            f"training.batch_size * training.accumulation * processes: {state['rows_per_step']} then, "
            f"{rows_per_step} now"
        )
    if state["rows"] != rows:
        reasons.append(f"the number of rows: {state['rows']} then, {dict(rows)} now; has the data changed?")
    if state["reference"] != reference:
        reasons.append(
            "the reference's weights are not those the run began with; give it the original base model "
            f"(fingerprint {_short(state['reference'])} then, {_short(reference)} now)"
        )
    if reasons:
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise ValueError(
            f"{checkpoint.folder} cannot be continued with this configuration:\n{listed}\n"
            "Set these back, or start afresh with another output"
        )


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old, new) of every value that differs between two plain configurations."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{path}.{index}")
    elif old != new:
        yield path, old, new


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
