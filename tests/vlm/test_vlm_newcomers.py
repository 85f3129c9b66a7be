"""What newcomers type and what is in their files: every mistake is told in words, before a weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.cli.__main__ import main
from mmalign.training.run import train
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import config_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``: a LLaVA; ``pipeline``: the index of an SDXL; ``photos``; ``rows.jsonl``: four good rows, four bad."""
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    (made / "pipeline").mkdir()
    (made / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    rows = []
    for number in range(8):
        Image.new("RGB", (40, 32), (30 * number, 100, 50)).save(made / f"{number}.png")
        rows.append({"images": [f"{number}.png"], "prompt": "What?", "chosen": f"Red {number}.", "rejected": "No."})
    rows[4]["images"] = ["gone.png"]
    rows[5]["chosen"] = " "
    rows[6]["prompt"] = "<image> and <image>?"
    rows[7]["rejected"] = rows[7]["chosen"]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(autouse=True)
def _nothing_is_loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    if "trains" in request.node.name:
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    for name in ("mmalign.training.vlms.load_vlm", "mmalign.training.images.load_components"):
        monkeypatch.setattr(name, refuse)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            ["playground/dpo", "model.name=LLAVA"],
            "is a vision-language model (llava), which is trained with family: vlm",
        ),
        (["playground/dpo", "model.name=playground/tiny-llava"], "is a vision-language model (llava)"),
        (["playground/vlm_dpo", "model.name=PIPELINE"], "is a diffusers pipeline, an image generator; train it with"),
        (["playground/vlm_dpo", "family=image"], "vlm_canonical"),
        (["playground/vlm_dpo", "family=image"], "has rows of vision-language models: set family: vlm"),
        (["playground/vlm_dpo", "family=image", "vlm=null"], "is a vision-language model (llava)"),
        (["playground/dpo", "family=vlm"], "pickapic has rows of image generators (family: image)"),
        (["playground/dpo", "family=vlm"], "data.resolution is for image generators"),
        (["playground/vlm_dpo", "family=vllm"], "'vlm'"),
        (["playground/vlm_dpo", "data.path=nowhere.json"], "there is no such file or folder"),
        (["playground/vlm_dpo", "model.name=nowhere"], "is no folder with a config.json, and no hub id"),
        (["playground/vlm_dpo", "reference.kind=cached"], "cached needs path"),
    ],
)
def test_the_wrong_family_is_told_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str], line: list[str], told: str
) -> None:
    places = {"LLAVA": folder / "model", "PIPELINE": folder / "pipeline"}
    for name, place in places.items():
        line = [part.replace(name, str(place)) for part in line]
    given = line if any(part.startswith("data.path") for part in line) else [*line, f"data.path={folder}"]
    assert main(["train", *given, f"output={folder / 'run'}"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (folder / "run").exists()


def config(folder: Path, **data: Any) -> Any:
    given = {"source": "trl", "path": str(folder / "rows.jsonl"), **data}
    return config_of(folder, data=given, training={"steps": 3, "batch_size": 2}, output=str(folder / "out"))


def test_bad_rows_are_counted_and_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 8 rows cannot be used \(25.00%, data.max_corrupt=0.01\)") as caught:
        train(config(folder))
    told = str(caught.value)
    assert "rows.jsonl:6 (chosen=' ' must be a text that is not empty" in told
    assert "rows.jsonl:5 (" in told
    assert "file not found" in told
    assert "gone.png" in told


def test_it_trains_without_them_and_names_what_tokens_tell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.training.run.write_report", lambda folder: folder)
    result = train(config(folder, max_corrupt=0.5))
    assert "2 unusable rows skipped" in (result.folder / "data.txt").read_text()
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").open()]
    named = {name: why for line in lines for name, why in line.get("unusable", {}).items()}
    assert sorted(named) == ["rows.jsonl:7", "rows.jsonl:8"]
    assert named["rows.jsonl:7"].startswith("a text holds '<image>', which stands for a picture")
    assert named["rows.jsonl:8"].startswith("chosen and rejected are the same tokens to the same pictures")
