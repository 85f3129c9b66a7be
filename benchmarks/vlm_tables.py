"""The report of ``benchmarks.vlm``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cache_tables import interval, ratio_interval

NAMES = {
    "packed": "mmalign, packed",
    "kept": "mmalign, packed, reference scores kept",
    "padded": "mmalign, padded",
    "trl": "TRL",
}
LOGPS = ("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp")
GPU_PROFILES = ("llava-7b", "qwen2.5-vl-7b")


def difference(checks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How far variants are apart on the same rows, at most: ``loss`` (at step 0 from log 2), ``logp``, ``gradient``.

    Relative to the largest value; a variant alone is compared with log 2 and with its own reference at step 0.
    """
    found: dict[str, list[float]] = {"loss": [], "logp": [], "gradient": []}
    first = next(iter(checks.values()))
    for said in checks.values():
        found["loss"].append(_apart([said["step_0"]["loss"]], [math.log(2)]))
        for stage in ("step_0", "moved"):
            found["loss"].append(_apart([said[stage]["loss"]], [first[stage]["loss"]]))
            found["logp"] += [_apart(said[stage][name], first[stage][name]) for name in LOGPS]
        found["logp"] += [_apart(said["step_0"][name], said["step_0"][f"ref_{name}"]) for name in LOGPS[:2]]
        found["gradient"].append(_apart([said["moved"]["gradient_norm"]], [first["moved"]["gradient_norm"]]))
    return {name: max(values) for name, values in found.items()}


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    """max |one - other| / max |other|; infinite where a value is missing or not finite."""
    if len(one) != len(other) or not all(map(math.isfinite, [*one, *other])):
        return math.inf
    scale = max(abs(value) for value in other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / scale


def render(results: Mapping[str, Any]) -> str:
    """Markdown: circumstances, whether all say the same, then variants and how much better the packed one is."""
    circumstances, profile = results["circumstances"], results["circumstances"]["profile"]
    versions = ", ".join(f"{name} {version}" for name, version in circumstances["versions"].items())
    loads = circumstances["load_average"]
    parts = [
        "# Training a vision-language model with DPO: speed and memory\n",
        f"`{circumstances['command']}` at commit `{circumstances['commit'][:12]}` on {circumstances['machine']} "
        f"({versions}); load average {min(loads):g} to {max(loads):g}.\n",
        _work(profile, results["runs"]),
        _agreement(results["checks"], profile["tolerance"]),
    ]
    parts += [f"{NAMES[variant]} was left out: {reason}.\n" for variant, reason in results["missing"].items()]
    parts += [_table(results["runs"], profile), _use(results), _ratios(results["runs"], profile), _notes(profile)]
    return "\n".join(part for part in parts if part)


def _work(profile: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    parameters, repetitions = profile["parameters"], len({run["repetition"] for run in runs})
    vision, vocabulary = (parameters[name] / parameters["all"] for name in ("vision", "vocabulary"))
    prompt, answer = profile["picture_tokens"] + profile["question_tokens"], profile["answer_tokens"]
    apart, together = 2 * (prompt + answer), prompt + 2 * answer
    return (
        f"The work: {profile['kind']} shape with random weights, {parameters['all'] / 1e6:,.1f} M parameters (vision "
        f"{vision:.0%}, vocabulary {vocabulary:.0%}), pictures of {profile['side']} px as {profile['picture_tokens']} "
        f"tokens, questions of {profile['question_tokens']} and answers of {profile['answer_tokens']}, all of one "
        f"length, so that nobody pads. DPO, LoRA of rank {profile['rank']} on the linear layers of the language model, "
        f"the reference is the LoRA switched off, AdamW, {profile['dtype']}, pairs per step: {profile['batch_size']}, "
        f"gradient checkpointing {'on' if profile['checkpointing'] else 'off'}. Each run in its own process, variants "
        f"alternating; timed steps: {profile['steps']} after {profile['warm_up']}; repetitions: {repetitions}.\n\n"
        f"The language model reads {apart:,} tokens for a pair that is not packed and {together:,} for a packed one, "
        f"{apart / together:.2f} times fewer, and the vision tower encodes a picture once instead of four times: that "
        "bounds what packing can gain here.\n"
    )


def _agreement(checks: Mapping[str, Any], tolerance: float) -> str:
    found = difference(checks)
    losses = ", ".join(f"{NAMES[variant]} {said['step_0']['loss']:.6f}" for variant, said in checks.items())
    return (
        f"The same rows first, with answers of several lengths. Loss at step 0 (log 2 = {math.log(2):.6f}): {losses}. "
        "At step 0 and under the same LoRA that is not 0, over all variants: losses differ by at most "
        f"{found['loss']:.1e}, log-probs of chosen and rejected, policy and reference, by {found['logp']:.1e}, and the "
        f"norm of the gradient by {found['gradient']:.1e}, relatively; {tolerance:g} was allowed.\n"
    )


def _table(runs: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]) -> str:
    cuda = profile["device"] == "cuda"
    heads = ["", "processor, s per step", "clock, s per step", "pairs per processor second", "pairs per clock second"]
    heads += ["peak RSS, MiB", "of that before the first step"] + (["peak CUDA memory, MiB"] if cuda else [])
    columns = ["step_cpu_seconds", "step_seconds", "pairs_per_cpu_second", "pairs_per_second"]
    columns += ["peak_rss_mib", "rss_before_training_mib"] + (["peak_cuda_mib"] if cuda else [])
    lines = [
        "Mean ± 95 % interval over the repetitions, where there are several.\n",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for variant in _variants(runs):
        cells = [interval([run[column] for run in runs if run["variant"] == variant]) for column in columns]
        lines.append(f"| {NAMES[variant]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _use(results: Mapping[str, Any]) -> str:
    """How well the device is used; recorded since the operations are."""
    if "operations_per_pair" not in results:
        return ""
    runs, profile = results["runs"], results["circumstances"]["profile"]
    clock = "step_seconds" if profile["device"] == "cuda" else "step_cpu_seconds"
    peak, each = results["matmul_operations_per_second"], results["operations_per_pair"]
    shares = []
    for variant in _variants(runs):
        if variant == "kept":
            continue  # it leaves out the reference's forward pass, which the operations count
        seconds = [run[clock] for run in runs if run["variant"] == variant]
        share = each * profile["batch_size"] / peak / (sum(seconds) / len(seconds))
        shares.append(f"{NAMES[variant]} {share:.0%}")
    return (
        f"Used of the device: {', '.join(shares)}; operations of a packed pair's forward passes and backward, "
        f"{each / 1e9:,.0f} GFLOP, a second, over the {peak / 1e9:,.0f} GFLOP/s that products of matrices reached.\n"
    )


def ratios(
    runs: Sequence[Mapping[str, Any]], slow: str, fast: str, column: str, *, key: str = "variant"
) -> list[float]:
    """``column`` of ``slow`` over that of ``fast``, for each repetition that has both; ``key`` holds their names."""
    by = {(run[key], run["repetition"]): run[column] for run in runs}
    both = sorted(number for variant, number in by if variant == slow and (fast, number) in by)
    return [by[slow, number] / by[fast, number] for number in both]


def _ratios(runs: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]) -> str:
    cuda = profile["device"] == "cuda"
    columns = {"processor": "step_cpu_seconds", "peak RSS": "peak_rss_mib"}
    if cuda:
        columns = {"clock": "step_seconds", "peak CUDA memory": "peak_cuda_mib"}
    lines = [f"| how many times better | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    present = _variants(runs)
    for slow, fast in (("trl", "packed"), ("trl", "kept"), ("trl", "padded"), ("padded", "packed")):
        if slow in present and fast in present:
            cells = [ratio_interval(ratios(runs, slow, fast, column)) for column in columns.values()]
            lines.append(f"| {NAMES[fast]} / {NAMES[slow]} | {' | '.join(cells)} |")
    if {"trl", "kept"} <= set(present):
        clock, memory = columns.values()
        whole = [{**run, clock: run[clock] + run.get(clock.replace("step", "ahead"), 0.0)} for run in runs]
        cells = [ratio_interval(ratios(whole, "trl", "kept", column)) for column in (clock, memory)]
        lines.append(f"| the same, computing the scores counted in: one epoch | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _notes(profile: Mapping[str, Any]) -> str:
    if profile["device"] == "cuda":
        return "The step waits for the device before the clock is read.\n"
    parts = [
        "Processor seconds are the number to trust, and what is compared: the machine was shared, so the "
        "clock says how busy others kept it.",
        "Packed rows need a dense mask, with which the CPU's attention cannot skip what causality hides; that weighs "
        "more in a narrow model than in one of 7 B parameters.",
        "On a CPU TRL's head scores every position, not only those of answers (its kernel for that is for GPUs): the "
        "larger the vocabulary's share of the model, the more that weighs.",
    ]
    if profile["name"] == "56m":
        parts.append(f"Not yet measured: the GPU profiles {' and '.join(GPU_PROFILES)} (`--profile NAME`).")
    return " ".join(parts) + "\n"


def _variants(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {run["variant"] for run in runs}
    return [variant for variant in NAMES if variant in present]
