"""Every recipe takes two steps on a tiny model of its class, and plain diffusers loads what it exports."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from mmalign import rewards
from mmalign.arena import Ballot, Battle, HoldOut, VoteStore
from mmalign.arena.export import export_votes
from mmalign.data import table_of, write_canonical
from mmalign.training.config import Config
from mmalign.training.loading import load_config
from mmalign.training.log import Log
from mmalign.training.recipe_files import recipe_names
from mmalign.training.run import train
from mmalign.types import ImageBytes, Ranking
from tests.arena.making_votes import saved_side
from tests.data.making_data import FIXTURE, png
from tests.tiny_models import tiny_flux, tiny_sd3, tiny_sd15, tiny_sdxl, tiny_sdxl_turbo

# The tiny pipeline that has the class of a recipe's model; a recipe of a new model adds its line.
MODELS = {
    "playground/tiny-sdxl": tiny_sdxl,
    "playground/tiny-sd3": tiny_sd3,
    "stabilityai/stable-diffusion-xl-base-1.0": tiny_sdxl,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny_sd15,
    "stabilityai/sdxl-turbo": tiny_sdxl_turbo,
    "stabilityai/stable-diffusion-3.5-medium": partial(tiny_sd3, version="3.5"),
    "black-forest-labs/FLUX.1-dev": tiny_flux,
}


def shrunk(name: str, folder: Path) -> Config:
    """The recipe on a tiny model and ten photographs; what the recipe is about - objective, LoRA, reference - stays."""
    recipe = load_config(name, check_files=False)
    MODELS[recipe.model.name](folder / "model")
    overrides = {
        "model.name": folder / "model",
        "data.path": data_for(name, recipe, folder),
        "data.resolution": 32,
        "training.steps": 2,
        "training.batch_size": 2,
        "training.accumulation": 1,
        "training.warmup_steps": 0,
        "training.mixed_precision": "no",
        "training.optimizer": "adamw",
        "training.workers": 0,
        "output": folder / "run",
    }
    if recipe.evaluation.pictures is not None:
        overrides["evaluation.pictures.inference_steps"] = 2
    if recipe.data.cache == "disk":
        overrides["data.cache_folder"] = folder / "cache"
    if recipe.data.relabel is not None:
        assert recipe.data.relabel in (
            "pickscore",
            "oracle",
        )  # not installed; reads no photographs
        overrides["data.relabel"] = "lightness"
    if recipe.data.held_out:
        overrides |= {"data.held_out": 0.3, "evaluation.every": 1}
    return load_config(name, [f"{key}={value}" for key, value in overrides.items()])


def data_for(name: str, recipe: Config, folder: Path) -> Path:
    """Photographs, rankings or votes: what the recipe trains on."""
    if name == "playground/from_votes":
        return votes(folder)
    return FIXTURE if recipe.data.source == "pickapic" else rankings(folder / "rankings.parquet")


def votes(folder: Path) -> Path:
    """Ten votes of a store, exported as the recipe's header says."""
    with VoteStore(folder / "votes.db") as store:
        for row in range(10):
            sides = tuple(saved_side(folder, model, f"prompt {row}", seed=2 * row + k) for k, model in enumerate("ab"))
            store.vote(store.open_battle(Battle(sides)), f"voter {row % 3}", Ballot(better="left"))
        return export_votes(store, folder / "votes_export.parquet", hold_out=HoldOut(share=0)).file


def rankings(path: Path) -> Path:
    """Ten rankings of four pictures."""
    rows = [
        Ranking(
            f"{row}", f"prompt {row}", tuple(ImageBytes("png", data=png(seed=4 * row + k)) for k in range(4)), labels
        )
        for row, labels in enumerate([(1.0, 0.0, 0.5, 0.25)] * 10)
    ]
    write_canonical(table_of(rows), path)
    return path


class Lightness:
    """A reward that needs no weights, in place of the one a recipe names."""

    name, scale, prompt_limit, version = "lightness", "mean luma", None, "1"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor([float(np.asarray(image.convert("L")).mean()) for image in images])


@pytest.fixture(autouse=True)
def a_reward_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "BUILT_IN", {**rewards.BUILT_IN, "lightness": Lightness})


IMAGE_RECIPES = [name for name in recipe_names() if load_config(name, check_files=False).family == "image"]


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_recipe_takes_two_steps_and_exports(name: str, tmp_path: Path) -> None:
    config = shrunk(name, tmp_path)
    result = train(config)
    log = Log(None)
    log.rewind(result.folder / "log.jsonl", step=2)
    assert [line["step"] for line in log.training] == [1, 2]
    assert all(line["loss"] is not None for line in log.training)
    assert result.report is not None
    assert result.report.is_file()
    aligned = result.folder / "aligned"
    assert (aligned / "README.md").is_file()
    base = DiffusionPipeline.from_pretrained(config.model.name)
    if config.model.lora:
        base.load_lora_weights(aligned)
        assert _denoiser(base).peft_config
    else:
        trained = _denoiser(DiffusionPipeline.from_pretrained(aligned)).state_dict()
        moved = [not torch.equal(trained[key], weight) for key, weight in _denoiser(base).state_dict().items()]
        assert any(moved)


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer
