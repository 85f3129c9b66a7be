"""The suite: every table can be named, its programs take what they are given, and paper plans say what they compute."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.__main__ import PROFILES, TABLES, commands, listing, main
from benchmarks.cache_tables import grown
from benchmarks.diffusion_scripts import PEERS
from benchmarks.memory import in_a_process
from benchmarks.memory import render as render_memory
from benchmarks.profile_steps import KINDS, kind_of, summed
from benchmarks.scale import STAGES, settings
from benchmarks.scale import render as render_scale
from mmalign.training.config import Config

TOLD = {"command": "c", "commit": "d" * 40, "machine": "m", "load_average": [0.0], "versions": {"torch": "2"}}


@pytest.mark.parametrize(("name", "profile"), [(name, each) for name in TABLES for each in TABLES[name].runs])
def test_every_program_takes_its_arguments(
    name: str, profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """``--help`` after them: argparse has looked at everything before it when it comes to that."""
    module = importlib.import_module(TABLES[name].module)
    for command in commands([name], profile, {}, []):
        monkeypatch.setattr("sys.argv", [*command[2:], "--help"])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 0, capsys.readouterr().err


def test_scripts_take_the_place_of_our_side_alone(tmp_path: Path) -> None:
    script = tmp_path / "train_with_lora.py"
    found = [" ".join(command[1:]) for command in commands(["diffusion"], "gpu", {"mapo": script}, ["--steps", "2"])]
    assert sum(f"--peer-script {script}" in line for line in found) == 2
    assert sum("--like mapo" in line for line in found) == 0
    assert sum("--like diffusers" in line for line in found) == 3
    assert all(line.endswith("--steps 2") for line in found)
    rehearsal = [command for name in TABLES for command in _rehearsal(name)]
    assert rehearsal
    assert all(command[-2:] == ["--results", "runs/rehearsal"] for command in rehearsal)
    assert {name for name in TABLES if _rehearsal(name)} >= {name for name in TABLES if "gpu" in TABLES[name].runs}


def _rehearsal(name: str) -> list[list[str]]:
    return list(commands([name], "rehearsal", {}, [])) if "rehearsal" in TABLES[name].runs else []


def test_tables_are_listed_and_failures_counted(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == listing().strip()
    assert all(name in listing() for name in TABLES)
    assert main(["arena", "--dry-run", "--", "--votes", "10"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "$ python -m benchmarks.arena --votes 10"
    assert main(["all", "--profile", "gpu", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("$ python -m benchmarks.") == sum(
        len(t.runs.get("gpu", ())) for t in TABLES.values()
    )
    with pytest.raises(SystemExit):
        main(["arena", "--profile", "gpu"])
    monkeypatch.setattr("benchmarks.__main__.subprocess.run", lambda *_, **__: type("Done", (), {"returncode": 3})())
    assert main(["all", "--profile", "gpu"]) == sum(len(table.runs.get("gpu", ())) for table in TABLES.values())
    assert set(PROFILES) == {profile for table in TABLES.values() for profile in table.runs}
    assert {run[1] for run in TABLES["diffusion"].runs["cpu"]} == set(PEERS)


def test_predicted_memory_is_what_a_run_holds(tmp_path: Path) -> None:
    row = in_a_process("DPO, LoRA, bf16", "tiny", tmp_path)  # other tests' tensors would count here
    assert row["predicted"] == pytest.approx(row["held"], rel=0.15)
    text = render_memory({"circumstances": TOLD, "rows": [{"configuration": "x", **row, "rss": 2**20}]})
    assert f"| {row['predicted'] / row['held']:.2f} |" in text


def test_the_recorded_memory_is_predicted_within_15_percent() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "memory.json"
    if not path.exists():
        pytest.skip("not yet measured: python -m benchmarks.memory")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render_memory(results)
    assert all(row["predicted"] == pytest.approx(row["held"], rel=0.15) for row in results["rows"])


@pytest.mark.slow
def test_the_paper_plan_is_what_the_command_says() -> None:
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert text == scaling.rendered(text)


def test_bytes_and_efficiency_by_hand() -> None:
    """Ten billion weights, a tenth of them trained, 3 passes of 10 TFLOP: 30 / (989 * 0.45) = 0.0674 s."""
    machine = scaling.Machine()
    lora = scaling.Work("LoRA", "ddp", 1e10, 1e9, 1e13, 3, 1, 1e6, 4)
    assert lora.compute_seconds(machine) == pytest.approx(0.0674, rel=1e-3)
    assert lora.sent_bytes(8) == 2 * 7 / 8 * 4e9
    assert lora.communication_seconds(8, machine) == pytest.approx(7e9 / 360e9 + 3 * 4 * 15e-6)
    assert lora.efficiency(1, machine) > lora.efficiency(8, machine) > 0
    sharded = scaling.Work("all", "fsdp2", 1e10, 1e10, 1e13, 5, 1, 1e6, 4)
    assert sharded.sent_bytes(16) == 15 / 16 * 1e11
    assert sharded.communication_seconds(16, machine) > 2 * sharded.communication_seconds(8, machine)
    larger = scaling.Work("all", "fsdp2", 1e10, 1e10, 1e13, 5, 64, 1e6, 4)
    assert sharded.efficiency(16, machine) < 0.5 < 0.9 < larger.efficiency(16, machine)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_the_scale_table_are_valid_runs(stage: str, tmp_path: Path) -> None:
    config = Config.model_validate(settings(stage, tmp_path))
    assert (config.data.cache == "disk") == (stage != "streamed")
    rows = []
    for pairs, seconds in ((1_000, 2.0), (1_000_000, 12.0)):
        one = {"first_step_cpu_seconds": seconds, "peak_rss_mib": 600.0}
        rows.append({"pairs": pairs, "bytes": 2**20, **dict.fromkeys(STAGES, one)})
    text = render_scale({"circumstances": TOLD, "rows": rows})
    assert f"- {stage}: 10.0 s and 0 MiB more for a million pairs" in text
    assert "First step of a million cached pairs after 12.0 s; at most 30" in text
    assert grown([0, 1e6, 2e6], [1, 3, 5]) == pytest.approx(2)


def test_operators_are_summed_by_kind() -> None:
    found = summed({"aten::addmm": 6.0, "aten::_scaled_dot_product_flash_attention": 3.0, "aten::what": 1.0})
    assert found["shares"] == {"matrix products": 0.6, "attention": 0.3, "other": 0.1}
    assert next(iter(found["dearest"])) == "aten::addmm"
    assert {kind_of(words[0]) for words in KINDS.values()} == set(KINDS)


def test_a_gpu_profile_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import diffusion

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sdxl-lora needs a CUDA device"):
        diffusion.main(["--like", "mapo", "--profile", "sdxl-lora"])
    assert "HF_HUB_OFFLINE" in os.environ


def test_the_peak_of_a_program_is_not_that_of_the_one_that_started_it() -> None:
    """The one that starts it held 300 MiB more for a moment, which getrusage reports of both."""
    inner = "from benchmarks.recording import peak_rss_mib; print(peak_rss_mib())"
    outer = f"import subprocess, sys; bytearray(300 * 2**20); subprocess.run([sys.executable, '-c', {inner!r}])"
    alone, started = (
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for code in (inner, outer)
    )
    assert started == pytest.approx(alone, rel=0.1)
    assert alone < 300
