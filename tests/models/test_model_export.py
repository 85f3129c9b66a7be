"""What is saved loads in plain diffusers and gives the pictures of the trained policy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from peft import LoraConfig
from tiny_models import LATENT, tiny_sd3, tiny_sd15, tiny_sdxl

from mmalign.models import (
    Card,
    Components,
    Encoder,
    export,
    generate,
    load_aligned,
    load_components,
    make_trainable,
    save_aligned,
    trainable_parameters,
)
from mmalign.training.config import LoRAConfig

BUILDERS = {"sd15": tiny_sd15, "sdxl": tiny_sdxl, "sd3": tiny_sd3}
LORA = LoRAConfig(rank=4, alpha=10.0)


@pytest.fixture(params=BUILDERS)
def components(request: pytest.FixtureRequest, tmp_path: Path) -> Components:
    return saved(BUILDERS[request.param], tmp_path)


def saved(build: Any, tmp_path: Path) -> Components:
    build(tmp_path / "base")
    return load_components(str(tmp_path / "base"))


def train_two_steps(components: Components) -> None:
    """Two steps of AdamW towards predicting zero, large enough to change pictures visibly."""
    text, pooled = Encoder(components).text(["a red circle"])
    latents = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    keywords: dict[str, Any] = {"encoder_hidden_states": text}
    if components.kind == "sdxl":
        keywords["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]])}
    if components.kind == "sd3":
        keywords["pooled_projections"] = pooled
    optimizer = torch.optim.AdamW(trainable_parameters(components.denoiser), lr=0.1)
    for _ in range(2):
        components.denoiser(latents, timestep=torch.tensor([500]), **keywords).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pictures(pipe: Any) -> list[bytes]:
    made = generate(pipe, ["a red circle", "two"], [1, 2], steps=3, guidance_scale=5.0)
    return [picture.tobytes() for picture in made]


@pytest.mark.parametrize("dora", [False, True])
def test_lora_round_trip_with_alpha_other_than_rank(components: Components, tmp_path: Path, dora: bool) -> None:
    before = pictures(components.pipe)
    make_trainable(components.denoiser, LORA.model_copy(update={"dora": dora}))
    train_two_steps(components)
    trained = pictures(components.pipe)
    assert trained != before
    folder = save_aligned(components, tmp_path / "aligned", LORA)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "base")
    plain.load_lora_weights(str(folder))
    assert pictures(plain) == trained
    assert pictures(load_aligned(str(tmp_path / "base"), folder)) == trained
    assert pictures(load_aligned(str(tmp_path / "base"), folder, lora_scale=0.0)) == before
    assert pictures(load_aligned(str(tmp_path / "base"), folder, lora_scale=0.5)) not in (before, trained)
    assert pictures(load_aligned(str(tmp_path / "base"))) == before


def test_rank_patterns_survive(components: Components, tmp_path: Path) -> None:
    components.denoiser.requires_grad_(False)
    components.denoiser.add_adapter(
        LoraConfig(
            r=4, lora_alpha=6, target_modules=["to_q", "to_k"], rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 7}
        )
    )
    train_two_steps(components)
    folder = save_aligned(components, tmp_path / "aligned", LoRAConfig(rank=4, alpha=6.0))
    plain = DiffusionPipeline.from_pretrained(tmp_path / "base")
    plain.load_lora_weights(str(folder))
    assert pictures(plain) == pictures(components.pipe)


def test_full_round_trip_also_after_the_encoders_were_released(components: Components, tmp_path: Path) -> None:
    before = pictures(components.pipe)
    make_trainable(components.denoiser, None)
    train_two_steps(components)
    trained = pictures(components.pipe)
    assert trained != before
    Encoder(components).release()
    folder = save_aligned(components, tmp_path / "aligned", None)
    assert pictures(DiffusionPipeline.from_pretrained(folder)) == trained
    assert pictures(load_aligned(str(tmp_path / "base"), folder)) == trained


def test_other_parts_keep_full_precision_in_a_full_export(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path / "base")
    components = load_components(str(tmp_path / "base"), dtype="bfloat16")
    make_trainable(components.denoiser, None)
    folder = save_aligned(components, tmp_path / "aligned", None)
    stored = DiffusionPipeline.from_pretrained(tmp_path / "base").text_encoder.state_dict()
    exported = DiffusionPipeline.from_pretrained(folder).text_encoder.state_dict()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)


def test_no_pickles(components: Components, tmp_path: Path) -> None:
    make_trainable(components.denoiser, None)
    folder = save_aligned(components, tmp_path / "aligned", None)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".md"}


def test_sd3_without_t5_exports_with_the_snippet_that_loads_it(tmp_path: Path) -> None:
    tiny_sd3(tmp_path / "base", t5=False)
    components = load_components(str(tmp_path / "base"))
    make_trainable(components.denoiser, None)
    folder = save_aligned(components, tmp_path / "aligned", None)
    assert len(run_snippet(folder)) == 1


def run_snippet(folder: Path) -> list[Any]:
    """The pictures of the card's own Python, shortened to one step."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace('pipe("a prompt")', 'pipe("a prompt", num_inference_steps=1)'), names)
    return [names["image"]]


def test_the_card_loads_what_it_describes(components: Components, tmp_path: Path) -> None:
    make_trainable(components.denoiser, LORA)
    card = Card(
        method="dpo",
        objective=[{"loss": "dpo", "beta": 5000.0}],
        settings={"learning_rate": 1e-5},
        data="Twenty-four pairs.",
        results={"win rate": "0.61 [0.55, 0.67]"},
    )
    folder = save_aligned(components, tmp_path / "aligned", LORA, "org/base", card)
    text = (folder / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model"] == "org/base"
    assert metadata["library_name"] == "diffusers"
    assert {"lora", "dpo", "mmalign"} <= set(metadata["tags"])
    assert "license" not in metadata
    for words in ("beta: 5000.0", "| learning_rate | 1e-05 |", "Twenty-four", "0.61 [0.55, 0.67]", "weight 2.5"):
        assert words in text
    assert "load_lora_weights" in text


def test_the_snippet_of_the_card_runs(components: Components, tmp_path: Path) -> None:
    make_trainable(components.denoiser, LORA)
    assert len(run_snippet(save_aligned(components, tmp_path / "aligned", LORA))) == 1


def test_adapter_metadata_is_stored(tmp_path: Path) -> None:
    from safetensors import safe_open

    components = saved(tiny_sdxl, tmp_path)
    make_trainable(components.denoiser, LORA)
    folder = save_aligned(components, tmp_path / "aligned", LORA)
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (4, 10.0)


def test_an_interrupted_save_leaves_the_previous_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = saved(tiny_sd15, tmp_path)
    make_trainable(components.denoiser, LORA)
    folder = save_aligned(components, tmp_path / "aligned", LORA)
    first = (folder / "pytorch_lora_weights.safetensors").read_bytes()
    train_two_steps(components)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_flush", full)
    with pytest.raises(OSError, match="No space"):
        save_aligned(components, folder, LORA)
    assert (folder / "pytorch_lora_weights.safetensors").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aligned", "base"]
    monkeypatch.undo()
    save_aligned(components, folder, LORA)
    assert (folder / "pytorch_lora_weights.safetensors").read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aligned", "base"]


def test_folders_with_other_things_are_not_replaced(tmp_path: Path) -> None:
    components = saved(tiny_sd15, tmp_path)
    make_trainable(components.denoiser, LORA)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(ValueError, match="not an exported model"):
        save_aligned(components, tmp_path / "photos", LORA)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


def test_lora_and_adapters_must_agree(tmp_path: Path) -> None:
    components = saved(tiny_sd15, tmp_path)
    with pytest.raises(ValueError, match="no adapters"):
        save_aligned(components, tmp_path / "aligned", LORA)
    make_trainable(components.denoiser, LORA)
    with pytest.raises(ValueError, match="lora is None"):
        save_aligned(components, tmp_path / "aligned", None)


@pytest.mark.parametrize("other", [tiny_sd15, tiny_sd3])
def test_a_lora_for_another_model_is_refused(other: Any, tmp_path: Path) -> None:
    components = saved(tiny_sdxl, tmp_path)
    make_trainable(components.denoiser, LORA)
    folder = save_aligned(components, tmp_path / "aligned", LORA)
    other(tmp_path / "other")
    with pytest.raises(ValueError, match="do not fit"):
        load_aligned(str(tmp_path / "other"), folder)


def test_load_aligned_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    tiny_sd15(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither LoRA weights"):
        load_aligned(str(tmp_path / "base"), tmp_path / "empty")
    with pytest.raises(ValueError, match="no effect"):
        load_aligned(str(tmp_path / "base"), tmp_path / "base", lora_scale=0.5)
