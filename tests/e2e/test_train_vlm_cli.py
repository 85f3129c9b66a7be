"""``mmalign train`` and ``mmalign evaluate vlm`` on a vision-language model, as a user types them."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.cli.__main__ import main
from mmalign.models.names import PLAYGROUND
from mmalign.playground.vlm_pairs import VLMPairSettings, prior_pairs
from mmalign.training import trainer
from mmalign.vlm_data import table_of, write_vlm_canonical

REPOSITORY = Path(__file__).parents[2]
LINE = (
    "train",
    str(REPOSITORY / "recipes" / "playground" / "vlm_dpo.yaml"),
    "data.path=rows.parquet",
    "model.lora={rank: 4, alpha: 8, targets: [q_proj, v_proj]}",
    "training.steps=4",
    "training.batch_size=4",
    "training.warmup_steps=0",
    "training.learning_rate=1e-2",
    "training.checkpoint_every=4",
    "evaluation.every=4",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``rows.parquet`` of the playground, and ``whole``: an uninterrupted run in a process of its own."""
    folder = tmp_path_factory.mktemp("workplace")
    write_vlm_canonical(table_of(prior_pairs(VLMPairSettings(rows=16))), folder / "rows.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "mmalign.cli", *LINE, "output=whole"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "CUDA_VISIBLE_DEVICES": ""}
        | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "report: whole/report.html" in done.stdout
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_from_the_first_step_to_the_report_and_to_peft(workplace: Path) -> None:
    folder = workplace / "whole"
    trained = [line for line in log_of(folder) if "split" not in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert trained[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert trained[-1]["loss"] != trained[0]["loss"]
    report = (folder / "report.html").read_text()
    assert "16 rows read" in report
    assert "Accuracy" in report
    base = AutoModelForImageTextToText.from_pretrained(PLAYGROUND / "tiny-llava")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, str(folder / "aligned")).merge_and_unload().state_dict()
    moved = {name.rsplit(".", 2)[1] for name, value in before.items() if not torch.equal(merged[name], value)}
    assert moved == {"q_proj", "v_proj"}
    assert AutoProcessor.from_pretrained(folder / "aligned").chat_template


def test_interrupted_and_resumed_is_uninterrupted(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "160")
    steps, original = [], trainer.optimizer_step

    def step_and_interrupt(*given: Any, **named: Any) -> None:
        original(*given, **named)
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "optimizer_step", step_and_interrupt)
        assert main([*LINE, "output=halves"]) == 130
    assert "interrupted after step 2; a checkpoint is saved" in capsys.readouterr().out
    assert not (workplace / "halves" / "aligned").exists()
    assert main([*LINE, "output=halves"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*LINE, "output=halves", "--resume"]) == 0
    assert log_of(workplace / "halves") == log_of(workplace / "whole")
    weights = [(workplace / run / "aligned" / "adapter_model.safetensors").read_bytes() for run in ("whole", "halves")]
    assert weights[0] == weights[1]


def test_base_and_aligned_are_evaluated_side_by_side(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "images").mkdir()
    questions = []
    for number, label in enumerate(("yes", "no", "yes", "no")):
        Image.new("RGB", (64, 64), ("red", "blue", "green", "white")[number]).save(f"images/{number}.png")
        question = {"question_id": number, "image": f"{number}.png", "text": "is there a star ?", "label": label}
        questions.append(json.dumps(question))
    Path("coco_pope_random.json").write_text("\n".join(questions))
    line = ["evaluate", "vlm", "--benchmark", "pope", "--questions", "coco_pope_random.json", "--images", "images"]
    models = ["--base", "playground/tiny-llava", "--aligned", "whole"]
    rest = ["--out", "judged", "--dtype", "float32", "--max-new-tokens", "3", "--bootstrap", "100", "--device", "cpu"]
    assert main([*line, *models, *rest]) == 0, capsys.readouterr().err
    answers = {side: Path(f"judged/answers/{side}.jsonl").read_text().splitlines() for side in ("base", "aligned")}
    assert [len(many) for many in answers.values()] == [4, 4]
    judged = json.loads(Path("judged/results.json").read_text())
    assert (judged["base"], judged["aligned"]) == ("playground/tiny-llava", "whole")
    table = Path("judged/table.txt").read_text()
    assert all(word in table for word in ("base", "aligned", "difference, 95 %", "yes ratio"))
    assert Path("judged/report.html").is_file()
