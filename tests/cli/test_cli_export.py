"""``mmalign export``: what a run left behind, in another form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli.__main__ import main
from mmalign.models import load_aligned, load_components, make_trainable, save_aligned
from mmalign.training.config import LoRAConfig
from mmalign.training.loading import dump_config, load_config
from tests.tiny_models import tiny_sd15


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: ``config.yaml`` and ``aligned``; its base model lies beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_sd15(folder.parent / "base")
    lora = LoRAConfig(rank=2, alpha=4.0, dora=True, targets=["to_q"])
    model = {"name": str(folder.parent / "base"), "lora": lora.model_dump()}
    config = load_config("sd15/dpo", [f"model={model}", "data.path=x", "reference=auto"], check_files=False)
    components = load_components(model["name"])
    make_trainable(components.denoiser, lora)
    with torch.no_grad():
        for parameter in components.denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_aligned(components, folder / "aligned", lora)
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def export(*arguments: Any) -> int:
    return main(["export", *map(str, arguments)])


def test_a_file_for_comfyui_from_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, "--out", tmp_path / "lora.safetensors") == 0
    said = capsys.readouterr().out
    assert f"24 layers of LoRA, 0 weights trained in full: {tmp_path / 'lora.safetensors'}".replace("24", "8") in said
    assert "ComfyUI divides by the length of the base model's rows" in said
    tensors = load_file(tmp_path / "lora.safetensors")
    assert {name.rsplit(".", 1)[-1] for name in tensors} == {"weight", "alpha", "dora_scale"}


@pytest.mark.parametrize("source", [".", "aligned", "aligned/pytorch_lora_weights.safetensors"])
def test_the_base_model_is_that_of_the_run(run: Path, tmp_path: Path, source: str) -> None:
    assert export(run / source, "--format", "diffusers", "--out", tmp_path / "again") == 0
    stored = load_file(run / "aligned" / "pytorch_lora_weights.safetensors")
    again = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert stored.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in stored.items())


def test_merged_is_a_pipeline(run: Path, tmp_path: Path) -> None:
    assert export(run, "--format", "merged", "--out", tmp_path / "whole") == 0
    base, whole = (load_aligned(str(folder)).unet.state_dict() for folder in (run.parent / "base", tmp_path / "whole"))
    changed = {name for name, value in whole.items() if not torch.equal(base[name], value)}
    assert changed
    assert all(name.endswith("to_q.weight") for name in changed)


def test_a_lone_lora_needs_its_base(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lone = tmp_path / "lone.safetensors"
    assert export(run, "--out", lone) == 0
    assert export(lone, "--format", "diffusers", "--out", tmp_path / "folder") == 2
    assert "give --base" in capsys.readouterr().err
    arguments = ("--base", run.parent / "base", "--format", "diffusers", "--out", tmp_path / "folder")
    assert export(lone, *arguments) == 0
    assert (tmp_path / "folder" / "pytorch_lora_weights.safetensors").is_file()
    assert export(tmp_path / "nothing", "--base", run.parent / "base", "--out", tmp_path / "x.safetensors") == 2
    assert "does not exist; give LoRA weights" in capsys.readouterr().err
