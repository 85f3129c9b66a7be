"""The benchmark of VLM DPO: variants say the same before they are timed, and its table is what was recorded."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import vlm, vlm_sides
from benchmarks.bench_check import below, summary
from benchmarks.vlm_models import PROFILES, pairs, parameters_of
from benchmarks.vlm_sides import check, timed, why_missing
from benchmarks.vlm_tables import difference, ratios, render

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TINY, QWEN = PROFILES["tiny"], PROFILES["tiny-qwen"]
NEEDS_TRL = pytest.mark.skipif(why_missing("trl") is not None, reason=str(why_missing("trl")))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check("packed", TINY, tmp_path_factory.mktemp("packed"))


def within(checks: dict[str, Any], tolerance: float) -> bool:
    return max(difference(checks).values()) <= tolerance


def test_packed_and_padded_say_the_same(packed: dict[str, Any], tmp_path: Path) -> None:
    assert within({"packed": packed, "padded": check("padded", TINY, tmp_path)}, TINY.tolerance)
    assert packed["step_0"]["loss"] == pytest.approx(math.log(2))
    moved = packed["moved"]
    assert abs(moved["loss"] - math.log(2)) > 100 * TINY.tolerance
    assert moved["gradient_norm"] > 0.01


def test_kept_scores_are_those_of_the_reference_and_are_computed_before_the_first_step(
    packed: dict[str, Any], tmp_path: Path
) -> None:
    assert within({"packed": packed, "kept": check("kept", TINY, tmp_path)}, TINY.tolerance)
    run = timed("kept", replace(TINY, steps=1, warm_up=0), tmp_path)
    assert run["ahead_cpu_seconds"] > 0.1 * run["step_cpu_seconds"]


@NEEDS_TRL
def test_trl_says_the_same(packed: dict[str, Any], tmp_path: Path) -> None:
    assert within({"packed": packed, "trl": check("trl", TINY, tmp_path)}, TINY.tolerance)


def test_other_pictures_would_be_noticed(
    packed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any, **settings: Any) -> list[Any]:
        one, other = pairs(*arguments, **settings)
        return [replace(one, images=other.images), replace(other, images=one.images)]

    monkeypatch.setattr(vlm_sides, "pairs", swapped)
    found = difference({"packed": packed, "swapped": check("packed", TINY, tmp_path)})
    assert found["logp"] > 100 * TINY.tolerance


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("step_0", "loss", 0.6932),
        ("moved", "rejected_logp", [-1.0, -2.0]),
        ("step_0", "ref_chosen_logp", [math.nan, 0.0]),
        ("moved", "loss", math.nan),
        ("moved", "gradient_norm", 1.0),
    ],
)
def test_a_difference_is_found(packed: dict[str, Any], stage: str, name: str, value: Any) -> None:
    other = copy.deepcopy(packed)
    other[stage][name] = value
    assert not within({"packed": packed, "trl": other}, TINY.tolerance)


def test_nothing_is_timed_where_variants_disagree(
    packed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def in_a_process(mode: str, variant: str, *_: Any) -> dict[str, Any]:
        asked.append(mode)
        other = copy.deepcopy(packed)
        other["moved"]["chosen_logp"][0] += 0.1 * (variant == "padded")
        return other

    monkeypatch.setattr(vlm, "in_a_process", in_a_process)
    with pytest.raises(SystemExit, match="disagree on the same rows"):
        vlm.compare(TINY, ("packed", "padded"), tmp_path, "command", tmp_path / "out.json")
    assert asked == ["check", "check"]
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("variant", ["packed", "padded", pytest.param("trl", marks=NEEDS_TRL)])
def test_the_path_of_the_gpu_profiles_at_tiny_size(variant: str, tmp_path: Path) -> None:
    """Qwen's classes, bfloat16 and gradient checkpointing, and a step that is timed."""
    quick = replace(QWEN, warm_up=1, steps=1, batch_size=2)
    said = check(variant, quick, tmp_path / "check")
    assert within({variant: said}, quick.tolerance)
    if variant != "packed":
        assert within({"packed": check("packed", quick, tmp_path / "packed"), variant: said}, quick.tolerance)
    run = timed(variant, quick, tmp_path / "time")
    assert len(run["steps_cpu_seconds"]) == 1
    assert run["step_cpu_seconds"] > 0
    assert run["pairs_per_cpu_second"] == pytest.approx(2 / run["step_cpu_seconds"])
    assert run["peak_rss_mib"] >= run["rss_before_training_mib"] > 50


def test_the_gpu_profiles_have_the_sizes_of_the_real_models() -> None:
    assert parameters_of(PROFILES["llava-7b"])["all"] == pytest.approx(7.06e9, rel=0.01)
    assert parameters_of(PROFILES["qwen2.5-vl-7b"])["all"] == pytest.approx(8.29e9, rel=0.01)
    assert {PROFILES[name].picture_tokens for name in ("llava-7b", "qwen2.5-vl-7b")} == {576}


def test_the_profiles_of_56_million_share_the_vocabulary_or_its_weight_with_llava() -> None:
    of_llava, small, deep = (parameters_of(PROFILES[name]) for name in ("llava-7b", "56m", "56m-deep"))
    assert PROFILES["56m"].text["vocab_size"] == PROFILES["llava-7b"].text["vocab_size"]
    assert deep["vocabulary"] / deep["all"] == pytest.approx(of_llava["vocabulary"] / of_llava["all"], abs=0.01)
    assert small["all"] == 55_068_160
    assert deep["all"] == pytest.approx(56e6, rel=0.01)
    for name in ("56m", "56m-deep"):
        assert PROFILES[name].picture_tokens == 576


def test_a_gpu_profile_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="llava-7b needs a CUDA device"):
        vlm.main(["--profile", "llava-7b", "--results", str(tmp_path), "--work", str(tmp_path / "work")])


def test_a_whole_run_without_trl(packed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = vlm.in_a_process
    monkeypatch.setattr(vlm, "in_a_process", lambda mode, *more: packed if mode == "check" else measure(mode, *more))
    monkeypatch.setattr(vlm_sides, "NEEDED", ("no_such_package",))
    folders = ["--results", str(tmp_path), "--work", str(tmp_path / "work")]
    vlm.main(["--profile", "tiny", "--variants", "packed", "trl", "--steps", "1", "--repetitions", "1", *folders])
    results = json.loads((tmp_path / "vlm_speed_tiny.json").read_text(encoding="utf-8"))
    assert [run["variant"] for run in results["runs"]] == ["packed"]
    text = (tmp_path / "vlm_speed_tiny.md").read_text(encoding="utf-8")
    assert text == render(results)
    assert "TRL was left out: no_such_package not installed; pip install 'mmalign[bench]'" in text


def test_ratios_are_of_the_same_repetition() -> None:
    runs = [
        {"variant": variant, "repetition": number, "step_cpu_seconds": seconds}
        for variant, number, seconds in [
            ("padded", 0, 4.0),
            ("packed", 0, 2.0),
            ("packed", 1, 5.0),
            ("padded", 1, 40.0),
        ]
    ]
    runs.append({"variant": "padded", "repetition": 2, "step_cpu_seconds": 1.0})  # stopped in between
    assert ratios(runs, "padded", "packed", "step_cpu_seconds") == [2.0, 8.0]
    circumstances = {"commit": "c", "machine": "m", "versions": {"torch": "1", "transformers": "2"}}
    found = summary(runs, circumstances)["ratios"]
    assert {name: each["ratio"] for name, each in found.items()} == {"packed": pytest.approx(4.0)}
    assert below(found) == [False]
    assert below({"cached": {"ratio": 1.0}, **found}) == [True, False]


@pytest.mark.parametrize("name", ["vlm_speed", "vlm_speed_56m_deep", "vlm_speed_tiny"])
def test_the_committed_table_is_what_was_recorded(name: str) -> None:
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert render(results) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert {run["variant"] for run in results["runs"]} == {"packed", "kept", "padded", "trl"}
    assert within(results["checks"], results["circumstances"]["profile"]["tolerance"])
