"""Models that are really sampled: same noise for both, the LoRA's scale, stopping, and what is told about a picture."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.live import LiveSource
from app.settings import checked
from app.sources import Request
from app.weights import digest_of
from mmalign.models import generate, load_aligned, load_components, make_trainable, save_aligned
from mmalign.models.names import PLAYGROUND
from mmalign.training.config import LoRAConfig

PROMPT = "a large solid red circle on a white background"
REQUEST = Request(PROMPT, (3,), steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LiveSource:
    """The embedded model, and it with a LoRA that was moved away from zero."""
    folder = tmp_path_factory.mktemp("run")
    components, lora = load_components("playground/tiny-sdxl"), LoRAConfig(rank=2)
    make_trainable(components.denoiser, lora)
    with torch.no_grad():
        for name, value in components.denoiser.named_parameters():
            if "lora_B" in name:
                value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    save_aligned(components, folder / "aligned", lora=lora)
    models = [{"name": "base", "base": "playground/tiny-sdxl"}]
    models.append({"name": "moved", "base": "playground/tiny-sdxl", "aligned": str(folder)})
    return LiveSource(checked({"models": models}, "the test"), device="cpu")


@pytest.mark.slow
def test_the_scale_of_a_lora_moves_the_loaded_model(source: LiveSource) -> None:
    base = source.sample("base", REQUEST)[0]
    full = source.sample("moved", REQUEST)[0]
    assert full.sha256 != base.sha256
    none = source.sample("moved", Request(PROMPT, (3,), steps=2, guidance=1.0, lora_scale=0.0))[0]
    assert none.sha256 == base.sha256
    half = source.sample("moved", Request(PROMPT, (3,), steps=2, guidance=1.0, lora_scale=0.5))[0]
    weights = source.settings.models[1].aligned
    assert weights is not None
    pipe: Any = load_aligned("playground/tiny-sdxl", weights / "aligned", lora_scale=0.5)
    own = generate(pipe, [PROMPT], [3], steps=2, guidance_scale=1.0)[0]
    assert half.image.tobytes() == own.tobytes()
    assert half.provenance["lora_scale"] == 0.5
    assert len(full.provenance["adapter_hash"]) == 64
    assert base.provenance["adapter_hash"] is None
    assert base.provenance["model_hash"] == full.provenance["model_hash"] == digest_of(str(PLAYGROUND / "tiny-sdxl"))
    assert base.provenance["scheduler"] == type(pipe.scheduler).__name__


@pytest.mark.slow
def test_steps_are_told_and_what_they_raise_stops(source: LiveSource) -> None:
    told: list[tuple[int, int]] = []
    request = Request(PROMPT, (11, 12), steps=2, guidance=1.0)
    source.sample("base", request, lambda done, steps: told.append((done, steps)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    source.sample("base", request, lambda done, steps: told.append((done, steps)))
    assert len(told) == 4  # nothing is sampled twice

    def stop(done: int, steps: int) -> None:
        raise InterruptedError(f"{done} of {steps}")

    with pytest.raises(InterruptedError, match="1 of 2"):
        source.sample("base", Request(PROMPT, (13,), steps=2, guidance=1.0), stop)


def test_weights_are_told_apart_by_their_files_or_by_the_commit_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("one", b"a"), ("two", b"a"), ("three", b"b")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "model.safetensors").write_bytes(content)
    one, two, three = (digest_of(str(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two != three
    hub, commit = tmp_path / "hub" / "models--somebody--something", "c" * 40
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    (hub / "snapshots" / commit).mkdir(parents=True)
    (hub / "snapshots" / commit / "model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert digest_of("somebody/something") == commit
    assert digest_of("somebody/else") is None


def test_what_the_settings_fix_is_not_the_visitors() -> None:
    fixed = {"name": "fixed", "base": "playground/tiny-sdxl", "guidance": 4.0, "steps": 3}
    made = LiveSource(checked({"models": [{"name": "free", "base": "playground/tiny-sdxl"}, fixed]}, "the test"))
    asked = Request(PROMPT, (1,), "grey", steps=9, guidance=1.0, lora_scale=0.3)
    assert made.effective("fixed", asked) == Request(PROMPT, (1,), "grey", 3, 4.0, 1.0)
    assert made.effective("free", asked) == Request(PROMPT, (1,), "", 9, 1.0, 1.0)
