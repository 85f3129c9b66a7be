"""The report of ``benchmarks.cache``."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TIMES = ("pair", "start_up", "encode", "whole")


def render(results: dict[str, Any]) -> str:
    """Markdown: circumstances, then per model the variants and their ratios to no cache."""
    circumstances = results["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in circumstances["versions"].items())
    parts = [
        "# What the disk cache saves\n",
        f"`{circumstances['command']}` at commit `{circumstances['commit'][:12]}` on {circumstances['machine']} "
        f"({versions}); load average {circumstances['load_average']}. Each run in its own process, variants "
        "alternating. Losses are equal to the last bit in all variants.\n",
        _costs(results["cost_ratios"]),
    ]
    for model, description in results["subjects"].items():
        runs = [run for run in results["runs"] if run["model"] == model]
        parts += [f"## {model}\n", f"{description}.\n", _table(runs), _ratios(runs)]
    return "\n".join(parts)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval; the value alone where there is one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return _number(mean)
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{_number(mean)} ± {_number(half)}"


def ratio_interval(ratios: Sequence[float]) -> str:
    """Geometric mean and 95 % t-interval of paired ratios, taken on their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.2f}"
    half = T_95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


def grown(sizes: Sequence[float], values: Sequence[float]) -> float:
    """By how much ``values`` grow for a million more in ``sizes``: the slope of the least-squares line."""
    middle, mean = statistics.mean(sizes), statistics.mean(values)
    products = sum((size - middle) * (value - mean) for size, value in zip(sizes, values, strict=True))
    return 1e6 * products / sum((size - middle) ** 2 for size in sizes)


def _costs(ratios: dict[str, dict[str, float]]) -> str:
    lines = ["| model | VAE encode, GFLOP | UNet forward, GFLOP | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {cost['vae_encode_gflop']:,.2f} | {cost['unet_forward_gflop']:,.2f} | {cost['ratio']:.2f} |"
        for name, cost in ratios.items()
    ]
    return "\n".join(lines) + "\n"


def _table(runs: Sequence[dict[str, Any]]) -> str:
    lines = [
        "Seconds of the processor, in brackets on the clock; mean ± 95 % interval.\n",
        "| cache | a pair | start-up | filling | whole run | peak RSS, MiB | cache, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(run["variant"] for run in runs):
        chosen = [run for run in runs if run["variant"] == variant]
        cells = [f"{interval(_column(chosen, f'{name}_cpu_seconds'))} ({_mean(chosen, name)})" for name in TIMES]
        cells.append(interval(_column(chosen, "peak_rss_mib")))
        cells.append(f"{chosen[-1]['cache_bytes'] / 2**20:.1f}" if "cache_bytes" in chosen[-1] else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratios(runs: Sequence[dict[str, Any]]) -> str:
    by = {variant: [run for run in runs if run["variant"] == variant] for variant in ("none", "filling", "filled")}

    def ratio(variant: str, column: str) -> str:
        pairs = zip(by["none"], by[variant], strict=True)
        return ratio_interval([without[column] / cached[column] for without, cached in pairs])

    lines = [
        ("pairs per second of training, filled / none", *_both(ratio, "filled", "pair")),
        ("whole run, none / filling: encoding included", *_both(ratio, "filling", "whole")),
        ("whole run, none / filled", *_both(ratio, "filled", "whole")),
        ("start-up, none / filled", *_both(ratio, "filled", "start_up")),
        ("peak memory, none / filled", ratio("filled", "peak_rss_mib"), ""),
    ]
    table = ["| how many times better | processor | clock |", "|---|---|---|"]
    return "\n".join([*table, *(f"| {name} | {cpu} | {clock} |" for name, cpu, clock in lines)]) + "\n"


def _both(ratio: Callable[[str, str], str], variant: str, name: str) -> tuple[str, str]:
    return ratio(variant, f"{name}_cpu_seconds"), ratio(variant, f"{name}_seconds")


def _column(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [run[name] for run in runs]


def _mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    return _number(statistics.mean(_column(runs, f"{name}_seconds")))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
