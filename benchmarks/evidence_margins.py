"""What the runs behind the evidence did to likelihood: ``python -m benchmarks.evidence_margins``.

Reads the logs that ``make evidence`` leaves in ``--work`` and writes ``benchmarks/results/evidence_margins.{json,md}``:
means of the last ten training steps of chosen and rejected log-ratio, and of beta times their difference.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.evidence_arms import RESULTS

SUITES = ("soft", "stabilisers")
BETA, LAST = 5000, 10


def measured(log: Path) -> dict[str, float] | None:
    """Means of the last steps, or None where the run logged no margin."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if row.get("split", "train") == "train" and "margin" in row][-LAST:]
    if not steps:
        return None
    names = ("chosen_logratio", "rejected_logratio", "margin")
    means = {name: statistics.fmean(step[name] for step in steps) for name in names}
    return {**means, "logit": BETA * means["margin"]}


def render(results: dict[str, Any]) -> str:
    """Markdown: one line per run, log-ratios in thousandths."""
    lines = [
        "# Likelihood in the runs behind the evidence",
        "",
        f"`{results['command']}`: means of the last {LAST} training steps; log-ratios in thousandths.",
        "",
        f"| run | seed | chosen log-ratio | rejected log-ratio | {BETA} x margin |",
        "|---|---|---|---|---|",
    ]
    for each in results["runs"]:
        chosen, rejected = 1000 * each["chosen_logratio"], 1000 * each["rejected_logratio"]
        lines.append(f"| {each['run']} | {each['seed']} | {chosen:+.1f} | {rejected:+.1f} | {each['logit']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logs = sorted(log for suite in SUITES for log in arguments.work.glob(f"*/seed*/{suite}_*/log.jsonl"))
    found = [(log, measured(log)) for log in logs if (log.parent / "report.html").exists()]
    runs = [{"run": log.parts[-2], "seed": int(log.parts[-3][4:]), **means} for log, means in found if means]
    results = {"command": "python -m benchmarks.evidence_margins", "runs": runs}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "evidence_margins.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "evidence_margins.md").write_text(render(results), encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
