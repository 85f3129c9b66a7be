"""The report of ``benchmarks.diffusion``."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.cache_tables import interval, ratio_interval
from benchmarks.diffusion_scripts import PATCHES
from benchmarks.recording import heading

NAMES = {
    "peer": "script",
    "cached": "mmalign, cached",
    "kept": "mmalign, cached, reference scores kept",
    "uncached": "mmalign, nothing cached",
}
EPOCHS = (1, 3, 10)
_KEPT = (
    "Reference scores are kept for every visit of a row with its noise (`reference: cached`): they cost the "
    "reference's forward once, and serve every further run on the same visits, with another loss, rate or LoRA.\n"
)


def difference(checks: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """How far the sides are apart on the same rows, at most and relatively: ``loss`` and ``gradient_norm``."""
    first = next(iter(checks.values()))
    return {
        name: max(
            abs(one[name] - other[name]) / abs(other[name])
            for said in checks.values()
            for one, other in zip(said, first, strict=True)
        )
        for name in ("loss", "gradient_norm")
    }


def render(results: Mapping[str, Any]) -> str:
    """Markdown: circumstances, the work, whether both say the same, times, ratios, what was patched."""
    peer, profile, runs = results["peer"], results["profile"], results["runs"]
    parts = [
        heading(f"Preference training of SDXL against {peer['source']}, {peer['file']}", results["circumstances"]),
        _work(results),
        _agreement(results["checks"], profile["tolerance"]),
        _table(results),
        _ratios(runs, profile),
        _KEPT if "kept" in _present(runs) else "",
        "Patched while the script runs, and nothing else:\n",
        *(f"- {PATCHES[name]}" for name in ("stop", "clock", *peer["patches"], "check")),
    ]
    return "\n".join(parts) + "\n"


def _work(results: Mapping[str, Any]) -> str:
    profile, peer, ratios = results["profile"], results["peer"], results["cost_ratios"]
    side, sizes = profile["shape"]["resolution"], ratios["here"]
    repetitions = len({run["repetition"] for run in results["runs"]})
    trained = f"LoRA of rank {profile['rank']}" if profile["lora"] else "all weights of the UNet"
    return (
        f"The work: SDXL's classes with random weights at {side} px, {trained}, {peer['optimizer']}, precision "
        f"{profile['precision']}, pairs per step: {profile['batch_size']}, checkpointing "
        f"{'on' if profile['checkpointing'] else 'as the script does it'}, {peer['objective']}. Each run in its own "
        f"process, sides alternating; timed steps: {profile['steps']} after {profile['warm_up']}; repetitions: "
        f"{repetitions}. A step is everything from one step's beginning to the next's.\n\n"
        f"Encoding a picture costs {sizes['vae_encode_gflop']:,.2f} GFLOP and a forward pass of the UNet "
        f"{sizes['unet_forward_gflop']:,.2f}, a ratio of {sizes['ratio']:.2f}; SDXL's at 1024 px is "
        f"{ratios['SDXL at 1024 px']['ratio']:.2f}.\n"
    )


def _agreement(checks: Mapping[str, Any], tolerance: float) -> str:
    found = difference(checks)
    losses = "; ".join(
        f"{NAMES[side]} {', '.join(format(row['loss'], '.6f') for row in said)}" for side, said in checks.items()
    )
    return (
        "The same rows first, in float32, with the same noise, timesteps and weights that are not those at the start. "
        f"Losses: {losses}. They differ by at most {found['loss']:.1e} and the norms of the gradients by "
        f"{found['gradient_norm']:.1e}, relatively; {tolerance:g} was allowed.\n"
    )


def _table(results: Mapping[str, Any]) -> str:
    runs, profile = results["runs"], results["profile"]
    clock = "step_seconds" if profile["device"] == "cuda" else "step_cpu_seconds"
    useful = profile["batch_size"] * results["operations_per_pair"] / results["matmul_operations_per_second"]
    memory = "peak_cuda_mib" if profile["device"] == "cuda" else "peak_rss_mib"
    lines = [
        "Medians over the steps of a run; mean ± 95 % interval over the repetitions.\n",
        "| | processor, s per step | clock, s per step | building the cache, processor s per pair | start-up, s | "
        f"peak {'CUDA' if memory == 'peak_cuda_mib' else 'RSS'}, MiB | used of the device |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in _present(runs):
        rows = [run for run in runs if run["side"] == side]
        built = [run["encode_cpu_seconds"] / run["encoded_pairs"] for run in rows if run["encoded_pairs"]]
        cells = [interval([run[name] for run in rows]) for name in ("step_cpu_seconds", "step_seconds")]
        cells += [interval(built) if built else "", f"{statistics.mean(run['start_up_seconds'] for run in rows):.1f}"]
        cells += [
            interval([run[memory] for run in rows]),
            f"{useful / statistics.mean(run[clock] for run in rows):.0%}",
        ]
        lines.append(f"| {NAMES[side]} | {' | '.join(cells)} |")
    lines.append(
        f"\nUsed of the device: operations of forward passes and backward, {results['operations_per_pair'] / 1e9:,.0f} "
        "GFLOP a pair without encoding and repetition, a second, over the "
        f"{results['matmul_operations_per_second'] / 1e9:,.0f} GFLOP/s that products of matrices reached here."
    )
    return "\n".join(lines) + "\n"


def _ratios(runs: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]) -> str:
    cuda = profile["device"] == "cuda"
    clock, memory = ("seconds", "peak_cuda_mib") if cuda else ("cpu_seconds", "peak_rss_mib")
    present, batch = _present(runs), profile["batch_size"]
    lines = [f"| how many times better than the script ({'clock' if cuda else 'processor'}) | |", "|---|---|"]
    if "peer" not in present:
        return ""

    def paired(side: str, cost: Any) -> str:
        by = {(run["side"], run["repetition"]): run for run in runs}
        both = [(by["peer", n], run) for (name, n), run in sorted(by.items()) if name == side and ("peer", n) in by]
        return ratio_interval([cost(theirs) / cost(ours) for theirs, ours in both])

    for side in [side for side in present if side != "peer"]:
        lines.append(f"| pairs per second, {NAMES[side]} | {paired(side, lambda run: run[f'step_{clock}'])} |")

    def whole(run: Mapping[str, Any], epochs: int = 1) -> float:
        built = run[f"encode_{clock}"] / run["encoded_pairs"] if run["encoded_pairs"] else 0.0
        return run[f"step_{clock}"] / batch + built / epochs

    if "cached" in present:
        for epochs in EPOCHS:
            name = f"the same with building the cache, {epochs} epoch{'s' * (epochs > 1)}"
            lines.append(f"| {name} | {paired('cached', partial(whole, epochs=epochs))} |")
        if "kept" in present:
            lines.append(f"| {NAMES['kept']}, with making both for one run alone | {paired('kept', whole)} |")
        lines.append(f"| peak memory, {NAMES['cached']} | {paired('cached', lambda run: run[memory])} |")
    return "\n".join(lines) + "\n"


def _present(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [side for side in NAMES if any(run["side"] == side for run in runs)]
