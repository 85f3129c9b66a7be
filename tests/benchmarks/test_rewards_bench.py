"""Every way of scoring is measured at tiny size, and the recorded table is what the records give."""

import json
from argparse import Namespace
from pathlib import Path

from benchmarks.rewards import CALLS, FORWARD, render, rows_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_every_way_is_measured_and_shares_are_of_the_forward_alone() -> None:
    sizes = {"pictures": 4, "reloads": 1, "side": 48, "batch_sizes": [2], "repeats": 1}
    rows = rows_of(Namespace(model="tiny", device="cpu", dtype="float32", **sizes))
    assert [row["way"] for row in rows] == [
        "one call a picture, weights read in every call",
        CALLS,
        "batches of 2",
        "batches of 2, one prompt for all",
        "two rewards, batches of 2, each alone",
        "two rewards, batches of 2, one backbone",
        "files, mmalign score, batches of 2",
        "decoding alone",
        FORWARD,
    ]
    assert all(row["pictures_per_second"] > 0 and row["pictures_per_cpu_second"] > 0 for row in rows)
    made = [{**row, "pictures_per_cpu_second": 2.0 + place, "machine": "m"} for place, row in enumerate(rows)]
    lines = render(made).splitlines()
    assert lines[4].endswith("| 4.0 | 1.33 | 0.40 |")  # batches of 2: 4 of 3 a call, 4 of 10 forward


def test_the_committed_table_is_what_was_recorded() -> None:
    rows = json.loads((RESULTS / "rewards.json").read_text(encoding="utf-8"))
    assert render(rows) == (RESULTS / "rewards.md").read_text(encoding="utf-8")
