"""The benchmark against published scripts: how a script is run and stopped, what is compared, what the table says."""

import io
import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import diffusion
from benchmarks.bench_check import below, diffusion_variants
from benchmarks.diffusion_peers import run_peer
from benchmarks.diffusion_profiles import PROFILES, moved, write_shard
from benchmarks.diffusion_scripts import PEERS, arguments_of, recognised
from benchmarks.diffusion_sides import check, our_config
from benchmarks.diffusion_tables import difference, render
from benchmarks.mfu import diffusion_operations, matmul_peak
from benchmarks.sdxl_models import MID, REAL, costs
from mmalign.data import open_table
from mmalign.training.config import DataConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TINY = PROFILES["tiny"]
SCRIPT = """
import argparse, sys, wandb
from pathlib import Path
from accelerate import Accelerator

parser = argparse.ArgumentParser()
for name in ("beta_dpo", "output_dir", "max_train_steps"):
    parser.add_argument(f"--{name}")
args, _ = parser.parse_known_args()
Path("seen.txt").write_text(" ".join([sys.argv[0], wandb.__name__, args.beta_dpo]))
accelerator = Accelerator(cpu=True)
for step in range(int(args.max_train_steps)):
    with accelerator.accumulate():
        pass
Path("saved.txt").write_text("the script went on")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "clone" / "train_diffusion_dpo_sdxl.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def test_the_small_model_divides_its_work_as_sdxl_does() -> None:
    recorded = json.loads((RESULTS / "cache.json").read_text(encoding="utf-8"))["cost_ratios"]["SDXL at 1024 px"]
    assert costs(MID)["ratio"] == pytest.approx(recorded["ratio"], rel=0.2)


@pytest.mark.slow
def test_the_recorded_costs_of_sdxl_are_those_of_its_shape() -> None:
    recorded = json.loads((RESULTS / "cache.json").read_text(encoding="utf-8"))["cost_ratios"]["SDXL at 1024 px"]
    assert costs(REAL) == pytest.approx(recorded)


def test_a_script_runs_as_a_program_until_the_last_step(script: Path, tmp_path: Path) -> None:
    from benchmarks.diffusion_peers import Enough

    before, steps = (list(sys.argv), list(sys.path), Path.cwd(), "wandb" in sys.modules), []

    def mark(step: int) -> None:
        steps.append(step)
        if step == 2:
            raise Enough

    run_peer(script, replace(TINY, steps=2), (tmp_path, tmp_path, tmp_path), mark)
    assert steps == [0, 1, 2]
    assert (script.parent / "seen.txt").read_text() == f"{script} wandb 5000"
    assert not (script.parent / "saved.txt").exists()
    assert before == (sys.argv, sys.path, Path.cwd(), "wandb" in sys.modules)
    with pytest.raises(SystemExit, match="came to its end before 3 steps"):
        run_peer(script, replace(TINY, steps=2), (tmp_path, tmp_path, tmp_path), lambda _: None)


def test_only_known_scripts_are_run(script: Path) -> None:
    assert recognised(script) is PEERS["diffusers"]
    with pytest.raises(SystemExit, match="there is no such file"):
        recognised(script.with_name("train.py"))
    other = script.with_name("train_with_lora.py")
    other.write_text("print('another')")
    with pytest.raises(SystemExit, match="none of the scripts"):
        recognised(other)


@pytest.mark.parametrize("name", PEERS)
def test_both_sides_are_asked_for_the_same(name: str, tmp_path: Path) -> None:
    peer, profile = PEERS[name], PROFILES["sdxl-full" if name == "salesforce" else "sdxl-lora"]
    given = arguments_of(peer, profile, tmp_path, tmp_path, tmp_path, 1e-5)
    pairs = dict(pairwise(given))
    ours = our_config("cached", peer, profile, (tmp_path, tmp_path, tmp_path))
    assert int(pairs["--resolution"]) == ours.data.resolution == 1024
    assert int(pairs["--train_batch_size"]) == ours.training.batch_size
    assert float(pairs["--learning_rate"]) == ours.training.learning_rate
    assert pairs["--mixed_precision"] == ours.training.mixed_precision == "bf16"
    assert (ours.model.lora is None) == (name == "salesforce")
    if peer.lora:
        assert int(pairs.get("--rank", pairs.get("--lora_rank"))) == ours.model.lora.rank
    assert ours.data.flip is False
    assert "--no_hflip" in given


def test_the_shard_reads_as_pick_a_pic(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00000.parquet", 5, 16, pictures=4, captions=3)
    table = open_table(DataConfig(source="pickapic", path=str(tmp_path), resolution=16))
    assert len(table) == 5
    assert len(set(table.prompts)) == 3
    row, swapped = table[0], table[1]
    assert Image.open(io.BytesIO(row.chosen.read())).size == (16, 16)
    assert (row.extras["swapped"], swapped.extras["swapped"]) == (False, True)


def test_the_cache_changes_no_loss(tmp_path: Path) -> None:
    """And weights are moved, or DPO would say log 2 whatever it is given."""
    variants = diffusion_variants(tmp_path)
    assert set(variants) == {"cached", "uncached"}
    folders = (tmp_path / "sdxl" / "model", next((tmp_path / "sdxl").glob("pickapic-*")), tmp_path / "again")
    profile = PROFILES["check"]
    said = check("cached", "mapo", profile, folders)
    assert len(said) == 2
    assert all(abs(row["loss"] - math.log(2)) > 0.01 and row["gradient_norm"] > 1e-3 for row in said)
    taken = variants["cached"]("cached", tmp_path / "timed")
    assert len(taken["steps_seconds"]) == profile.steps
    assert taken["encoded_pairs"] == profile.rows
    assert taken["encode_cpu_seconds"] > 0
    assert below({}) == []


def test_moved_weights_follow_from_names_alone() -> None:
    one, other = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    other.load_state_dict(one.state_dict())
    start = one.weight.clone()
    moved(one, lora=False)
    moved(other, lora=False)
    assert torch.equal(one.weight, other.weight)
    assert not torch.equal(one.weight, start)


def test_what_is_faster_and_wrong_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def in_a_process(mode: str, side: str, *_: Any) -> Any:
        asked.append(mode)
        return {} if mode == "prepare" else [{"loss": 0.7 + 0.1 * (side == "cached"), "gradient_norm": 1.0}]

    monkeypatch.setattr(diffusion, "in_a_process", in_a_process)
    with pytest.raises(SystemExit, match="disagree on the same rows"):
        diffusion.compare("diffusers", TINY, ("cached", "uncached"), tmp_path, "command", tmp_path / "out.json")
    assert asked == ["prepare", "check", "check"]
    assert not (tmp_path / "out.json").exists()


def test_the_table_has_the_ratio_with_the_cache_counted() -> None:
    assert render(recorded()).count("| 1.50 [1.50, 1.50] |") == 1
    # Script 3 s a pair; ours 2 s, and 1 s a pair once: 3 / (2 + 1 / epochs).
    for epochs, ratio in ((1, "1.00"), (3, "1.29"), (10, "1.43")):
        name = f"building the cache, {epochs} epoch"
        assert any(name in line and f"| {ratio} [" in line for line in render(recorded()).splitlines())
    found = difference(recorded()["checks"])
    assert found == {"loss": pytest.approx(0.01), "gradient_norm": 0.0}


def recorded() -> dict[str, Any]:
    run = {"start_up_seconds": 1.0, "peak_rss_mib": 100.0, "encode_cpu_seconds": 0.0, "encoded_pairs": 0}
    sides = {
        "peer": {**run, "step_cpu_seconds": 6.0, "step_seconds": 6.0},
        "cached": {**run, "step_cpu_seconds": 4.0, "step_seconds": 4.0, "encode_cpu_seconds": 8.0, "encoded_pairs": 8},
    }
    peer = PEERS["diffusers"]
    names = ("name", "file", "source", "objective", "patches", "optimizer")
    return {
        "circumstances": {
            "command": "c",
            "commit": "d" * 40,
            "machine": "m",
            "load_average": [0],
            "versions": {"a": "1"},
        },
        "peer": {name: getattr(peer, name) for name in names},
        "profile": {**vars(replace(TINY, batch_size=2)), "shape": {"resolution": 64}, "lora": True},
        "cost_ratios": {
            name: {"vae_encode_gflop": 1, "unet_forward_gflop": 2, "ratio": 0.5} for name in ("here", "SDXL at 1024 px")
        },
        "matmul_operations_per_second": 1e9,
        "operations_per_pair": 1e8,
        "checks": {side: [{"loss": 1.0 + 0.01 * (side == "cached"), "gradient_norm": 2.0}] for side in sides},
        "runs": [{"side": side, "repetition": number, **values} for number in (0, 1) for side, values in sides.items()],
    }


def test_operations_of_a_step_are_those_of_the_method() -> None:
    forward = 2 * costs(TINY.shape)["unet_forward_gflop"] * 1e9
    mapo = diffusion_operations(TINY, lora=True, reference=False)
    dpo = diffusion_operations(TINY, lora=True, reference=True)
    whole = diffusion_operations(TINY, lora=False, reference=True)
    assert dpo - mapo == pytest.approx(forward, rel=0.1)  # LoRA's own products on top
    assert 1.5 * forward < mapo < 2.5 * forward
    assert whole == pytest.approx(4 * forward, rel=0.1)
    assert matmul_peak("cpu", torch.float32) > 1e8
