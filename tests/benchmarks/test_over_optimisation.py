"""The table of over-optimisation: what is read from a run's log, and what is shown of it."""

import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from benchmarks.evidence_arms import SUITES
from benchmarks.evidence_data import MAKERS
from benchmarks.over_optimisation import MEASURED, OUT, Settings, plot, read_run, render


def point(step: int, proxy: float, held_out: float) -> dict:
    numbers = {"proxy_reward": proxy, "held_out_reward": held_out, **dict.fromkeys(MEASURED, 0.25)}
    return {"step": step, "split": "pictures", **numbers}


def log(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_alarm_and_the_best_step_before_it_are_read_from_the_log(tmp_path: Path) -> None:
    alarm = {"step": 40, "split": "event", "kind": "guard.over_optimisation", "action": "stop", "message": "..."}
    other = {"step": 20, "split": "event", "kind": "likelihood_displacement", "action": "warn", "message": "..."}
    points = (point(0, 0.2, 0.8), point(20, 0.4, 0.9), point(40, 0.6, 0.7), point(60, 0.8, 0.95))
    found = read_run(
        log(tmp_path / "narrow", {"step": 10, "loss": 0.6}, *points[:2], other, points[2], alarm, points[3])
    )
    assert (found["alarm"], found["best"]) == (40, 20)  # what comes after the alarm is no candidate
    assert [at["held_out_reward"] for at in found["curve"]] == [0.8, 0.9, 0.7, 0.95]
    quiet = read_run(log(tmp_path / "gold", *points))
    assert (quiet["alarm"], quiet["best"]) == (None, 60)


def test_the_table_shows_alarm_and_worth(tmp_path: Path) -> None:
    alarm = {"step": 20, "split": "event", "kind": "guard.over_optimisation", "action": "stop", "message": "..."}
    narrow = read_run(log(tmp_path / "narrow", point(0, 0.2, 0.8), point(20, 0.6, 0.7), alarm, point(40, 0.9, 0.5)))
    gold = read_run(log(tmp_path / "gold", point(0, 0.2, 0.8), point(20, 0.2, 0.9)))
    base, worse, better = ({"gold": [[level] * 2] * 3, "proxy": [[1 - level] * 2] * 3} for level in (0.5, 0.25, 0.75))
    seed = {"narrow": {**narrow, "end": worse}, "gold": {**gold, "end": better}, "base": base}
    told = {"command": "x", "commit": "c" * 40, "machine": "m", "versions": {}, "load_average": [1.0]}
    results = {"circumstances": told, "settings": asdict(Settings(judged=3)), "seeds": {"0": seed}}
    text = render(results)
    assert "| narrow | 0 | 20 | here | 0.600 | 0.700 |" in text
    assert "| narrow | 0 | 0 (best) |  | 0.200 | 0.800 |" in text
    assert "| gold | 0 | 20 (best) | none | 0.200 | 0.900 |" in text
    assert "| narrow, end | 0 | 0.000 [0.000, 0.000] | 1.000 [1.000, 1.000] | 0.500 -> 0.250" in text
    assert "| gold, end | 0 | 1.000 [1.000, 1.000] | 0.000" in text
    assert "narrow, best step" not in text  # the untrained model was best
    plot(results, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


def test_the_committed_table_is_what_was_recorded() -> None:
    results = json.loads(OUT.read_text(encoding="utf-8"))
    assert render(results) == OUT.with_suffix(".md").read_text(encoding="utf-8")
    for runs in results["seeds"].values():
        assert runs["narrow"]["alarm"] is not None
        assert runs["gold"]["alarm"] is None


def test_the_suite_of_labels_names_data_that_is_made() -> None:
    assert {arm.data for arm in SUITES["labels"].arms.values()} <= set(MAKERS)
