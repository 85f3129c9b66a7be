"""The shipped model and the recipe that trains it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from mmalign.models import generate, load_aligned, resolve_model
from mmalign.playground.oracle import judge_batch
from mmalign.playground.pretrain import Progress, Settings, pretrain
from mmalign.playground.scene import LEVELS, held_out_prompts

SMALL = Settings(images=40, vae_steps=2, vae_batch=4, unet_steps=2, unet_batch=4, precision="fp32", judged_prompts=2)


def test_the_shipped_model_is_imperfect_but_clearly_conditional() -> None:
    """All-correct between 20 and 75 % on held-out captions; 80 pictures know that to about 10 points."""
    pipe = load_aligned("playground/tiny-sdxl")
    prompts = held_out_prompts("single", 80)
    pictures = generate(pipe, prompts, list(range(80)), steps=12, guidance_scale=3.0, batch_size=40)
    verdicts = judge_batch(pictures, prompts)
    assert 0.20 <= np.mean([verdict.all_correct for verdict in verdicts]) <= 0.75
    shuffled = judge_batch(pictures, prompts[1:] + prompts[:1])
    assert np.mean([verdict.share for verdict in shuffled]) < np.mean([verdict.share for verdict in verdicts]) - 0.2


def test_the_shipped_folder_is_small_plain_and_says_how_it_was_made() -> None:
    folder = Path(resolve_model("playground/tiny-sdxl"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    record = json.loads((folder / "pretrain.json").read_text())
    assert record["quality"].keys() == set(LEVELS)
    assert "mmalign.playground.pretrain" in record["command"]


def test_pretraining_writes_a_pipeline_that_plain_diffusers_loads(tmp_path: Path) -> None:
    record = pretrain(tmp_path, SMALL, torch.device("cpu"))
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert pipe.vae.config.scaling_factor > 0
    assert set(record["quality"]) == set(LEVELS)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.pt"))


def test_progress_goes_on_where_it_stopped_and_only_in_its_phase(tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({"net": torch.nn.Linear(3, 3)})
    optimizer = torch.optim.AdamW(modules.parameters())
    progress = Progress(tmp_path / "progress.pt")
    assert progress.load("vae", modules, optimizer) == 0
    progress.save("vae", 7, modules, optimizer)
    other = torch.nn.ModuleDict({"net": torch.nn.Linear(3, 3)})
    assert progress.load("vae", other, torch.optim.AdamW(other.parameters())) == 7
    assert torch.equal(other["net"].weight, modules["net"].weight)
    assert progress.load("unet", other, torch.optim.AdamW(other.parameters())) == 0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_exchanged_labels_are_exact_in_number_and_keep_the_gold(tmp_path: Path, rate: float) -> None:
    import pyarrow.parquet as pq
    from PIL import Image

    from mmalign.playground.pairs import exchange_labels, make_pairs, write_pickapic

    samples = [(f"prompt {i}", [Image.new("RGB", (8, 8), (i, 0, side)) for side in (0, 9)]) for i in range(10)]
    write_pickapic(make_pairs(samples, lambda _, images: [0.0, 1.0][: len(images)]), tmp_path / "right.parquet")
    assert exchange_labels(tmp_path / "right.parquet", tmp_path / "wrong.parquet", rate, seed=1) == round(10 * rate)
    rows = pq.read_table(tmp_path / "wrong.parquet").to_pylist()
    assert sum(row["label_0"] != row["gold_label_0"] for row in rows) == round(10 * rate)
    for row in rows:
        assert row["best_image_uid"] == row["image_0_uid" if row["label_0"] == 1 else "image_1_uid"]
