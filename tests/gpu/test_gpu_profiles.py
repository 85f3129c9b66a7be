"""What the GPU profiles of the benchmarks run, at tiny size on a GPU: bf16, checkpointing, peak memory, compilation."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.diffusion_profiles import PROFILES, prepare
from benchmarks.diffusion_scripts import PEERS
from benchmarks.diffusion_sides import check, timed
from benchmarks.diffusion_tables import difference
from benchmarks.mfu import matmul_peak
from benchmarks.vlm_models import PROFILES as VLM_PROFILES
from benchmarks.vlm_sides import check as vlm_check
from benchmarks.vlm_sides import timed as vlm_timed
from benchmarks.vlm_tables import difference as vlm_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TINY = replace(PROFILES["tiny-gpu"], device="cuda", tolerance=1e-2)


@pytest.mark.parametrize("like", PEERS)
def test_both_of_our_sides_say_the_same_and_are_timed(like: str, tmp_path: Path) -> None:
    sides = ("cached", "uncached", *(["kept"] if PEERS[like].objective["loss"] == "dpo" else []))
    model, data = prepare(TINY, tmp_path)
    said = {side: check(side, like, TINY, (model, data, tmp_path / "check" / side)) for side in sides}
    assert max(difference(said).values()) <= TINY.tolerance
    for side in sides:
        taken = timed(side, like, TINY, (model, data, tmp_path / "timed" / side))
        assert len(taken["steps_seconds"]) == TINY.steps
        assert taken["peak_cuda_mib"] > 1


def test_a_compiled_side_runs(tmp_path: Path) -> None:
    profile = replace(TINY, compiled=True, checkpointing=False)
    taken = timed("cached", "diffusers", profile, (*prepare(profile, tmp_path), tmp_path / "timed"))
    assert len(taken["steps_seconds"]) == profile.steps


@pytest.mark.parametrize("name", ["tiny", "tiny-qwen"])
def test_vision_language_variants_say_the_same_and_are_timed(name: str, tmp_path: Path) -> None:
    profile = replace(VLM_PROFILES[name], device="cuda", dtype="bfloat16", tolerance=2e-2, warm_up=1, steps=1)
    said = {variant: vlm_check(variant, profile, tmp_path / "check" / variant) for variant in ("packed", "padded")}
    assert max(vlm_difference(said).values()) <= profile.tolerance
    assert said["packed"]["step_0"]["loss"] == pytest.approx(math.log(2), rel=1e-2)
    assert vlm_timed("packed", profile, tmp_path / "timed")["peak_cuda_mib"] > 1


def test_memory_is_counted_by_the_allocator(tmp_path: Path) -> None:
    row = memory.measured("DPO, LoRA, bf16", "tiny", tmp_path, "cuda")
    assert row["held"] > row["parts"]["weights"]


def test_products_of_matrices_reach_a_rate() -> None:
    assert matmul_peak("cuda", torch.bfloat16) > 1e12
