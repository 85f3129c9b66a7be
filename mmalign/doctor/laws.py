"""The laws of step 0 on the recipe's own model and first rows: every log-ratio is 0, and rows do not see each other."""

import math

import torch

from mmalign.doctor.findings import Finding, Level
from mmalign.losses import Objective
from mmalign.training.config import Config, ReferenceConfig
from mmalign.training.image_data import ImageData
from mmalign.training.images import ImageTask
from mmalign.training.task import TRAIN, RowKey, Task

ROWS = 2


def law_findings(config: Config, data: ImageData) -> list[Finding]:
    """Load the model, score two rows in training mode as the first step would, and look at the numbers."""
    unadorned = without_kept_scores(config)
    unadorned.evaluation.pictures = None
    unadorned.data.cache = "none"
    for name in ("cache_folder", "cache_latents", "cache_dtype"):
        setattr(unadorned.data, name, type(config.data).model_fields[name].default)
    return laws_of(config, ImageTask.from_config(unadorned, data))


def without_kept_scores(config: Config) -> Config:
    """A copy of ``config`` whose reference is live: nothing is written, and what is kept proves nothing."""
    plain = config.model_copy(deep=True)
    if plain.reference.kind == "cached":
        plain.reference = ReferenceConfig()
    return plain


def laws_of(config: Config, task: Task) -> list[Finding]:
    """The laws on the first rows of ``task``, which was just loaded."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.policy.to(device).train()
    task.prepare(device)
    keys = [RowKey(TRAIN, index, 1 + index) for index in range(min(ROWS, task.size(TRAIN)))]
    with torch.no_grad():
        together = task.score(task.policy, task.collate([task.load(key) for key in keys]).to(device))
        apart = [task.score(task.policy, task.collate([task.load(key)]).to(device)) for key in keys]
    branches = task.objective.branches
    found = []
    if task.objective.needs_reference:
        largest = max(float(together[branch].logratio.abs().max()) for branch in branches)
        found.append(_log_ratios(largest))
    singles = {branch: torch.cat([scores[branch].logp for scores in apart]) for branch in branches}
    gap = max(float((together[branch].logp - singles[branch]).abs().max()) for branch in branches)
    found.append(_batching(gap))
    loss = float(task.objective.train(False)(together).loss)
    found.append(_loss(loss, config, task.objective))
    return found


def _log_ratios(largest: float) -> Finding:
    if largest == 0:
        return Finding(Level.ok, "step 0", "policy and reference agree exactly: every log-ratio is 0")
    return Finding(
        Level.error,
        "step 0",
        f"policy and reference differ before any training: a log-ratio of {largest:.3g} where 0 is due. Dropout in the "
        "model, or another precision for the reference?",
    )


def _batching(gap: float) -> Finding:
    if gap <= 1e-5:
        return Finding(Level.ok, "step 0", f"two rows together score as they do alone (largest difference {gap:.1g})")
    return Finding(
        Level.warning,
        "step 0",
        f"two rows together score differently from each alone, by {gap:.2g}: normal in half precision, where kernels "
        "depend on the batch; otherwise rows influence each other",
    )


def _loss(loss: float, config: Config, objective: Objective) -> Finding:
    if not math.isfinite(loss):
        return Finding(Level.error, "step 0", f"the loss of the first rows is {loss}")
    expected = " (log 2 = 0.6931, as it has to be)" if abs(loss - math.log(2)) < 1e-4 else ""
    terms = " + ".join(str(term["loss"]) for term in config.objective)
    return Finding(
        Level.ok,
        "step 0",
        f"the loss of the first rows is {loss:.4f}{expected}, {terms} over {len(objective.branches)} branches",
    )
