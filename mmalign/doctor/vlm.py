"""The doctor's checks of a recipe for a vision-language model; nothing is written and nothing is trained."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mmalign.adapters import VLMAdapter
from mmalign.doctor.examine import SMALL_MODEL, data_findings, memory_findings, schedule_findings
from mmalign.doctor.findings import Finding, Level
from mmalign.doctor.laws import ROWS, laws_of, without_kept_scores
from mmalign.doctor.vlm_memory import predict_vlm_memory
from mmalign.doctor.vlm_rows import bias_findings, some_items, token_findings
from mmalign.models.vlm import vlm_without_weights
from mmalign.training.config import Config
from mmalign.training.kept_scores import scores_size
from mmalign.training.processes import processes_started
from mmalign.training.strategy import check_packages
from mmalign.training.task import HELD_OUT, TRAIN, RowKey
from mmalign.training.vlm_data import VLMData
from mmalign.training.vlm_run import VLMRun
from mmalign.training.vlms import VLMTask, rows_of

GAIN_PER_TOKEN = 0.1  # nats by which a few hundred steps move the log-prob of a token
SATURATED, FAINT = 20.0, 0.02
PACKED_GAP = 1e-3  # of sums over hundreds of tokens in float32


def examine_vlm(config: Config, *, load: bool = False) -> Iterator[Finding]:
    """Findings as they are made; see :func:`mmalign.doctor.examine`."""
    run = VLMRun(config)
    check_packages(config)
    yield _model(run)
    data = run.head()
    yield from data_findings(config, data, run.objective)
    components = vlm_without_weights(config.model, min_pixels=run.vlm.min_pixels, max_pixels=run.vlm.max_pixels)
    rows = rows_of(config, data, components, VLMAdapter(run.vlm.pack, row_tokens=run.vlm.row_tokens), run.objective)
    items = some_items(rows)
    yield from token_findings(config, rows, items)
    usable = [item for item in items if not item.unusable]
    if not usable:
        return
    yield from bias_findings(config, rows, usable)
    tokens = float(np.mean([len(response.input_ids) for item in usable for response in item.responses.values()]))
    yield from beta_findings_of_tokens(config.objective, tokens)
    yield from schedule_findings(config, data)
    memory = predict_vlm_memory(config, components, rows, usable)
    yield from memory_findings(config, memory)
    yield _scores(run, data)
    if load or memory.weights < SMALL_MODEL:
        yield from vlm_law_findings(config, data)
    else:
        yield Finding(Level.note, "step 0", "not checked: the weights are large; --load loads them and checks")


def _model(run: VLMRun) -> Finding:
    what = "LoRA" if run.config.model.lora else "all weights"
    text = (
        f"{run.config.model.name} ({run.info.model_type}), {what}, vlm.freeze {run.vlm.freeze}: {run.trained:,} of "
        f"{run.parameters:,} parameters are trained"
    )
    return Finding(Level.ok, "model", text)


def beta_findings_of_tokens(objective: list[dict[str, Any]], tokens: float) -> Iterator[Finding]:
    """What each beta makes of responses of ``tokens`` tokens on average."""
    for index, term in enumerate(objective):
        if isinstance(term.get("beta"), int | float):
            yield _beta(f"objective.{index}", term, tokens)


def _beta(about: str, term: Mapping[str, Any], tokens: float) -> Finding:
    beta, counted = float(term["beta"]), 1.0 if term.get("score") == "mean" else tokens
    logit = beta * GAIN_PER_TOKEN * counted
    of = "the mean over tokens" if term.get("score") == "mean" else f"sums over {tokens:.0f} tokens"
    text = (
        f"beta {beta:g} on {of}: log-probs that move by {GAIN_PER_TOKEN:g} per token on one side move the logit by "
        f"{logit:.3g}"
    )
    name = f"{about} ({term['loss']})"
    if logit > SATURATED:
        why = "the sigmoid saturates after the first steps, and the loss goes to 0; published runs have 0.1"
        return Finding(Level.warning, name, f"{text}: {why}", f"{about}.beta=0.1")
    if logit < FAINT:
        why = "the sigmoid stays at one half; published runs have 0.1 on sums, 2 and more on means"
        return Finding(
            Level.warning, name, f"{text}: {why}", f"{about}.beta={2 if term.get('score') == 'mean' else 0.1}"
        )
    return Finding(Level.note, name, text)


def _scores(run: VLMRun, data: VLMData) -> Finding:
    config = run.config
    if config.reference.kind == "cached":
        size = scores_size(config, data.size(HELD_OUT), run.objective.branches, processes_started())
        return Finding(Level.note, "reference", size)
    if not run.objective.needs_reference:
        return Finding(Level.note, "reference", "the objective needs none")
    return Finding(
        Level.note,
        "reference",
        "scored again at every step; reference.kind=cached keeps its scores for other runs on the same rows, seed and "
        "batch size (another beta, loss weight, learning rate or LoRA)",
    )


def vlm_law_findings(config: Config, data: VLMData) -> Iterator[Finding]:
    """Load the model, score two rows as the first step would, together and apart, packed and not."""
    task = VLMTask.from_config(without_kept_scores(config), data)
    yield from laws_of(config, task)
    yield _packing(task)


def _packing(task: VLMTask) -> Finding:
    """Every response behind a prompt of its own scores as where responses share one."""
    reason = task.adapter.why_not_packed(task.policy)
    if reason is not None or task.adapter.pack == "never":
        why = reason or "vlm.pack is never"
        return Finding(Level.note, "packing", f"every response is scored behind a prompt of its own: {why}")
    device = next(task.policy.parameters()).device
    keys = [RowKey(TRAIN, index, 1 + index) for index in range(min(ROWS, task.size(TRAIN)))]
    batch = task.collate([task.load(key) for key in keys]).to(device).batch
    plain = VLMAdapter("never")
    with torch.no_grad():
        scores = [a.score(task.policy, None, batch, task.objective.branches) for a in (task.adapter, plain)]
    gap = max(float((scores[0][b].logp - scores[1][b].logp).abs().max()) for b in task.objective.branches)
    if gap <= PACKED_GAP:
        text = f"responses behind one copy of the prompt score as behind their own (largest difference {gap:.1g})"
        return Finding(Level.ok, "packing", text)
    return Finding(
        Level.warning,
        "packing",
        f"packed rows score differently from unpacked ones, by {gap:.2g}: normal in half precision, otherwise a mask "
        "that lets responses see each other",
        "vlm.pack=never",
    )
