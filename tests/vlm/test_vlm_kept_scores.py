"""Reference scores of vision-language models on disk: digit for digit those of the live reference, or refused."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mmalign.cli.__main__ import main
from mmalign.references import CachedReference
from mmalign.references.cached import kept_in
from mmalign.training import kept_scores_build
from mmalign.training.cache_run import build_cache
from mmalign.training.config import Config
from mmalign.training.kept_scores import scores_bytes
from mmalign.training.run import train
from mmalign.training.strict_yaml import dump_yaml
from mmalign.training.trainer import Trainer
from mmalign.training.vlms import VLMTask
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import LORA, config_of, pairs, write_rows

MDPO = [
    {"loss": "dpo", "beta": 0.1},
    {"loss": "dpo", "rejected": "chosen@crop", "beta": 0.1},
    {"loss": "anchor", "beta": 0.1},
]
SEVERAL_EPOCHS = {"steps": 3, "batch_size": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and ``rows.parquet``: six pairs about pictures, one of them about two, one about none."""
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    write_rows(made, pairs(8))
    return made


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.training.run.write_report", lambda folder: folder)


def run_of(folder: Path, out: Path, kept: Path | None = None, **sections: Any) -> Config:
    """mDPO over several epochs with held-out rows; ``kept``: where the reference's scores are kept."""
    given: dict[str, Any] = {
        "objective": MDPO,
        "training": SEVERAL_EPOCHS,
        "data": {"held_out": 0.25},
        "evaluation": {"every": 2},
        "output": str(out),
    }
    given |= {} if kept is None else {"reference": {"kind": "cached", "path": str(kept)}}
    return config_of(folder, **{**given, **sections})


def fitted(config: Config, *, resume: bool = False) -> tuple[VLMTask, list[dict[str, Any]]]:
    """The task after training, and every number that its log has."""
    task = VLMTask.from_config(config)
    Trainer(config, task, folder=Path(config.output)).fit(resume=resume)
    lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").open()]
    return task, [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_weights(one: VLMTask, two: VLMTask) -> None:
    weights = two.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.policy.state_dict().items())


@pytest.mark.parametrize(
    ("lora", "precision"),
    [(LORA, "no"), (None, "no"), pytest.param(LORA, "bf16", marks=pytest.mark.slow)],
    ids=["lora", "full", "lora-bf16"],
)
def test_kept_scores_give_the_losses_of_the_live_reference(
    folder: Path, tmp_path: Path, lora: Any, precision: str
) -> None:
    """Corrupted branches, held-out rows and a second epoch included; what was built ahead is all that is asked for."""
    given = {"model": {"lora": lora}, "training": {**SEVERAL_EPOCHS, "mixed_precision": precision}}
    live, expected = fitted(run_of(folder, tmp_path / "live", **given))
    config = run_of(folder, tmp_path / "kept-run", tmp_path / "kept", **given)
    assert build_cache(config) == [tmp_path / "kept"]
    task, numbers = fitted(config)
    assert numbers == expected
    assert_same_weights(task, live)
    assert isinstance(task.reference, CachedReference)
    # Three steps; two held-out rows in one batch, measured three times.
    assert (task.reference.hits, task.reference.misses) == (6, 0)


def test_a_run_that_fills_the_cache_resumes(folder: Path, tmp_path: Path) -> None:
    training = {**SEVERAL_EPOCHS, "steps": 3, "checkpoint_every": 2}
    given: dict[str, Any] = {"data": {"held_out": 0.0}, "evaluation": {"every": None}}
    whole, expected = fitted(run_of(folder, tmp_path / "whole", training=training, **given))
    half = {**given, "training": {**training, "steps": 2}}
    first, _ = fitted(run_of(folder, tmp_path / "halves", tmp_path / "kept", **half))
    rest = run_of(folder, tmp_path / "halves", tmp_path / "kept", training=training, **given)
    task, numbers = fitted(rest, resume=True)
    assert numbers == expected
    assert_same_weights(task, whole)
    for one, misses in ((first, 2), (task, 1)):
        assert isinstance(one.reference, CachedReference)
        assert (one.reference.hits, one.reference.misses) == (0, misses)


def other_template(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder / "model")
    processor.chat_template = processor.chat_template.replace("ASSISTANT: ", "BOT: ")
    processor.save_pretrained(folder / "model")


def other_mean(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder / "model")
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(folder / "model")


def other_weights(folder: Path) -> None:
    save_tiny_vlm(folder / "model", seed=1)


def other_rows(folder: Path) -> None:
    write_rows(folder, [replace(row, rejected="Maybe.") for row in pairs(8)])


@pytest.fixture(scope="module")
def kept(folder: Path) -> Path:
    """A folder for the scores of ``folder/model``; still empty, but what scores depend on is settled."""
    VLMTask.from_config(run_of(folder, folder / "run", folder / "kept"))
    return folder / "kept"


def test_what_trains_the_policy_is_no_reason_to_refuse(folder: Path, kept: Path, tmp_path: Path) -> None:
    given = {"model": {"lora": {**LORA, "rank": 3}}, "training": {**SEVERAL_EPOCHS, "learning_rate": 1.0, "seed": 7}}
    VLMTask.from_config(run_of(folder, tmp_path / "run", kept, **given))


@pytest.mark.parametrize(
    ("field", "sections"),
    [
        (r"model\.dtype", {"model": {"lora": LORA, "dtype": "bfloat16"}}),
        (r"vlm\.corruptions", {"vlm": {"max_length": 256, "corruptions": {"crop": {"scale": [0.01, 0.1]}}}}),
        ("branches", {"objective": MDPO[:1]}),
    ],
)
def test_a_stale_cache_is_refused_and_the_setting_is_named(
    folder: Path, kept: Path, tmp_path: Path, field: str, sections: Any
) -> None:
    with pytest.raises(ValueError, match=rf"reference\.path: .*\n  - {field}: .* there, .* now"):
        VLMTask.from_config(run_of(folder, tmp_path / "run", kept, **sections))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("chat_template", other_template),
        (r"processor\.image_processor\.image_mean", other_mean),
        ("reference", other_weights),
        ("rows", other_rows),
    ],
)
def test_a_cache_of_other_files_is_refused_and_the_part_is_named(
    folder: Path, kept: Path, tmp_path: Path, field: str, change: Any
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "changed"))
    change(place)
    with pytest.raises(ValueError, match=rf"reference\.path: .*\n  - {field}: .* there, .* now"):
        VLMTask.from_config(run_of(place, tmp_path / "run", kept))


def test_a_picture_that_changed_under_its_name_is_refused(tmp_path: Path) -> None:
    """Same name, same size in bytes, other pixels: the rows' fingerprint is the same, that of the pixels is not."""
    save_tiny_vlm(tmp_path / "model")
    rows = []
    for number in range(4):
        Image.new("RGB", (40, 32), (number, 100, 50)).save(tmp_path / f"{number}.bmp")
        question = {"role": "user", "content": "What?"}
        answers = {
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        rows.append({"images": [f"{number}.bmp"], "prompt": [question], **answers})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "trl", "path": str(tmp_path / "rows.jsonl")}
    config = config_of(
        tmp_path,
        data=data,
        training={"steps": 2, "batch_size": 2},
        reference={"kind": "cached", "path": str(tmp_path / "kept")},
    )
    build_cache(config)
    Image.new("RGB", (40, 32), (200, 0, 50)).save(tmp_path / "2.bmp")
    with pytest.raises(ValueError, match=r"holds scores of other pixels than \S*rows.jsonl:3 now has"):
        fitted(config)


def test_the_plan_tells_the_size_and_the_command_builds_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    config = run_of(folder, tmp_path / "run", tmp_path / "kept")
    train(config, dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "for the scores of 4 micro-batches of 3 (chosen, rejected, chosen@crop)" in told
    assert not (tmp_path / "kept").exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(config.model_dump(mode="json", exclude_defaults=True)))
    assert main(["cache", "build", str(recipe), "reference=auto"]) == 2
    assert "add reference.kind=cached reference.path=FOLDER" in capsys.readouterr().err
    assert main(["cache", "build", str(recipe)]) == 0
    shown = capsys.readouterr()
    assert "scores of 4 of 4 micro-batches computed" in shown.err
    assert "4 micro-batches of reference scores (chosen, rejected, chosen@crop)" in shown.out
    assert main(["cache", "build", str(recipe)]) == 0
    assert "scores of 0 of 4 micro-batches computed" in capsys.readouterr().err
    size = sum(path.stat().st_size for path in (tmp_path / "kept").glob("scores-*.jsonl"))
    predicted = 4 * scores_bytes(config, ["chosen", "rejected", "chosen@crop"])
    assert size == pytest.approx(predicted, rel=0.25)


def fill(config: Config, pause: float) -> None:
    """What one building process does; ``pause`` seconds for every micro-batch, so that there is time to kill it."""
    torch.set_num_threads(1)
    keep = CachedReference.keep

    def slow(*given: Any) -> None:
        time.sleep(pause)
        keep(*given)

    CachedReference.keep = slow  # type: ignore[method-assign] - in a process of its own
    kept_scores_build.SECONDS_BETWEEN_LOOKS = 0.05
    build_cache(config)
    os._exit(0)


def started(config: Config, pause: float = 0.05) -> BaseProcess:
    process = get_context("fork").Process(target=fill, args=(config, pause))
    process.start()
    return process


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("scores-*.jsonl")):
        yield from (json.loads(line) for line in file.read_text().splitlines() if line.endswith("}"))


def test_killed_and_shared_builds_end_up_as_one_undisturbed_does(folder: Path, tmp_path: Path) -> None:
    training = {**SEVERAL_EPOCHS, "steps": 12}
    whole = run_of(folder, tmp_path / "run", tmp_path / "whole", training=training)
    shared = run_of(folder, tmp_path / "run", tmp_path / "shared", training=training)
    build_cache(whole)
    first = started(shared)
    until = time.monotonic() + 60
    while sum(1 for _ in entries(tmp_path / "shared")) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    files = list((tmp_path / "shared").glob("scores-*.jsonl"))
    with files[0].open("a") as file:
        file.write('{"visits": "half a li')  # as if it had been killed while it wrote
    assert 4 <= sum(1 for _ in entries(tmp_path / "shared")) < 13
    both = [started(shared), started(shared)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    found = {entry["visits"]: entry for entry in entries(tmp_path / "shared")}
    assert found == {entry["visits"]: entry for entry in entries(tmp_path / "whole")}
    assert len(list(entries(tmp_path / "shared"))) == len(found) == 13  # nobody made what was there
    assert len(list((tmp_path / "shared").glob("scores-*.jsonl"))) == 3
    kept = kept_in(tmp_path / "shared")
    assert kept is not None
    assert kept[0] == 13
