"""The task of vision-language models: step 0, what is trained, what is left out, accumulation, resume, export."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.adapters.vlm_families import FAMILIES
from mmalign.models.vlm import load_vlm
from mmalign.models.vlm_names import PARTS
from mmalign.references import FrozenReference, LoRAOffReference
from mmalign.training.config import Config
from mmalign.training.loading import load_config
from mmalign.training.log import Log
from mmalign.training.mistakes import ConfigError
from mmalign.training.run import train
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.trainer import Trainer
from mmalign.training.vlm_data import VLMData
from mmalign.training.vlms import VLMTask
from mmalign.types import Message
from mmalign.vlm_data import table_of
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import config_of, pairs, picture, write_rows

NO_LORA = {"lora": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    save_tiny_vlm(made / "qwen", "qwen2_5_vl")
    write_rows(made)
    return made


def task_of(config: Config, rows: Any = None) -> VLMTask:
    task = VLMTask.from_config(config, VLMData({TRAIN: table_of(rows or pairs())}, "rows"))
    task.prepare(torch.device("cpu"))
    return task


def first_batch(task: VLMTask, rows: range = range(4)) -> Any:
    return task.collate([task.load(RowKey(TRAIN, row, 7 + row)) for row in rows])


def loss_at_step_0(config: Config, rows: Any = None) -> tuple[float, Any]:
    task = task_of(config, rows)
    task.policy.train()
    scores = task.score(task.policy, first_batch(task))
    return float(task.objective(scores).loss.detach()), scores


@pytest.mark.parametrize("model", ["model", "qwen"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("pack", ["auto", "never"])
def test_step_0_is_log_2(folder: Path, model: str, lora: bool, pack: str) -> None:
    given = {"name": str(folder / model)} | ({} if lora else NO_LORA)
    loss, scores = loss_at_step_0(config_of(folder, model=given, vlm={"pack": pack}))
    assert scores.chosen_logratio.abs().max() == 0
    assert scores.rejected_logratio.abs().max() == 0
    assert loss == pytest.approx(math.log(2))


def test_step_0_of_mpo_is_the_weighted_sum(folder: Path) -> None:
    """0.8 * log 2 + 0.2 * 2 * log 2 + NLL: dpo, bco_pair with shift 0, sft."""
    objective = [
        {"loss": "dpo", "beta": 0.1, "coefficient": 0.8},
        {"loss": "bco_pair", "beta": 0.1, "coefficient": 0.2},
        {"loss": "sft", "coefficient": 1.0},
    ]
    loss, scores = loss_at_step_0(config_of(folder, objective=objective))
    nll = -float(scores.chosen_mean_logp.mean())
    assert loss == pytest.approx(1.2 * math.log(2) + nll, rel=1e-6)


def test_without_pictures_is_another_branch_with_a_gap_of_its_own(folder: Path) -> None:
    objective = [{"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "rejected": "chosen@null", "beta": 0.1}]
    loss, scores = loss_at_step_0(config_of(folder, objective=objective))
    assert loss == pytest.approx(2 * math.log(2))
    assert scores["chosen@null"].logp[0] != scores["chosen"].logp[0]
    words_alone = scores["chosen@null"].logp[2] - scores["chosen"].logp[2]
    assert float(words_alone.detach().abs()) < 1e-4


def test_step_0_of_mdpo_is_three_times_log_2(folder: Path) -> None:
    """2.0794: preference, condition on the picture, anchor; the crop is the same for policy and reference."""
    objective = [
        {"loss": "dpo", "beta": 0.1},
        {"loss": "dpo", "rejected": "chosen@crop", "beta": 0.1},
        {"loss": "anchor", "beta": 0.1},
    ]
    loss, scores = loss_at_step_0(config_of(folder, objective=objective))
    # Three terms for the rows with pictures; the row of words alone has nothing to crop, and counts in two of them.
    assert loss == pytest.approx(3 * math.log(2))
    assert scores["chosen@crop"].logratio.abs().max() == 0
    assert scores.present["chosen@crop"].tolist() == [True, True, False, True]


def test_a_corrupted_picture_follows_from_the_key_alone(folder: Path) -> None:
    objective = [{"loss": "dpo", "rejected": "chosen@strong", "beta": 0.1}]
    corruptions = {"strong": {"corruption": "noise", "step": 800}}
    task = task_of(config_of(folder, objective=objective, vlm={"corruptions": corruptions}))

    def pixels(index: int, epoch: int) -> torch.Tensor:
        item = task.load(RowKey(TRAIN, index, 0, epoch))
        return item.contexts[item.responses["chosen@strong"].context].media["pixel_values"]

    assert torch.equal(pixels(0, 7), pixels(0, 7))
    assert not torch.equal(pixels(0, 7), pixels(0, 8))
    both = pixels(1, 7)
    clean = task.load(RowKey(TRAIN, 1, 7)).contexts[0].media["pixel_values"]
    assert not torch.equal((both - clean)[0], (both - clean)[1])  # each picture of a row has noise of its own


@pytest.mark.parametrize(
    ("rejected", "corruptions", "problem"),
    [
        ("chosen@cropp", {}, "'cropp' is no corruption"),
        ("chosen@noise", {"noise": {"steps": 3}}, "noise has no parameter 'steps'"),
        ("rejected", {"crop": {}}, "vlm.corruptions.crop would be ignored"),
    ],
)
def test_branches_that_cannot_be_made(folder: Path, rejected: str, corruptions: Any, problem: str) -> None:
    objective = [{"loss": "dpo", "rejected": rejected, "beta": 0.1}]
    with pytest.raises(ValueError, match=problem):
        task_of(config_of(folder, objective=objective, vlm={"corruptions": corruptions}))


def test_retrieved_pictures_count_where_a_row_has_them(folder: Path) -> None:
    rows = pairs()
    rows[0] = replace(rows[0], branch_images={"retrieved": (picture(50),)})
    objective = [{"loss": "dpo", "rejected": "chosen@retrieved", "beta": 0.1}]
    config = config_of(folder, objective=objective)
    task = task_of(config, rows)
    batch = first_batch(task)
    assert batch.present["chosen@retrieved"].tolist() == [True, False, False, False]
    assert batch.present["chosen"].tolist() == [True] * 4
    loss = task.objective(task.score(task.policy, batch)).loss
    assert float(loss.detach()) == pytest.approx(math.log(2))


def test_lora_goes_where_freeze_lets_it(folder: Path) -> None:
    def adapted(freeze: str) -> set[str]:
        task = task_of(config_of(folder, vlm={"freeze": freeze}))
        assert isinstance(task.reference, LoRAOffReference)
        return {name.split(".")[2] for name, value in task.policy.named_parameters() if value.requires_grad}

    assert adapted("vision") == {"language_model"}
    assert adapted("none") == {"language_model", "vision_tower"}


def test_all_weights_but_the_frozen_ones_are_trained(folder: Path) -> None:
    def trained(freeze: str) -> set[str]:
        task = task_of(config_of(folder, model=NO_LORA, vlm={"freeze": freeze}))
        assert isinstance(task.reference, FrozenReference)
        return {".".join(n.split(".")[1:3]) for n, value in task.policy.named_parameters() if value.requires_grad}

    assert trained("vision") == {"model.language_model", "lm_head.weight"}
    assert trained("tower") == {"model.language_model", "lm_head.weight", "model.multi_modal_projector"}
    assert trained("none") == trained("tower") | {"model.vision_tower"}


def test_rows_that_cannot_be_used_are_named_and_count_for_nothing(folder: Path) -> None:
    rows = pairs()
    rows[1] = replace(rows[1], prompt=(Message("user", (*rows[1].prompt[0].content, "word " * 60)),))
    rows[3] = replace(rows[3], chosen="A <image> of a cat.")
    task = task_of(config_of(folder), rows)
    batch = first_batch(task)
    assert batch.present["chosen"].tolist() == [True, False, True, False]
    assert set(batch.unusable) == {"row-1", "row-3"}
    assert "32 of them for pictures, which leaves no room" in batch.unusable["row-1"]
    assert "stands for an image" in batch.unusable["row-3"]
    usable = first_batch(task_of(config_of(folder), [rows[0], rows[2]]), range(2))
    scores, alone = task.score(task.policy, batch), task.score(task.policy, usable)
    torch.testing.assert_close(scores["chosen"].logp[[0, 2]], alone["chosen"].logp, rtol=0, atol=1e-4)
    assert float(task.objective(scores).loss) == pytest.approx(math.log(2))


def test_a_response_is_cut_and_its_pictures_never(folder: Path) -> None:
    rows = [replace(row, chosen="word " * 100) for row in pairs()]
    task = task_of(config_of(folder, vlm={"max_length": 60}), rows)
    item = task.load(RowKey(TRAIN, 0, 0))
    context = item.contexts[0]
    assert context.placeholders == {"image": 16}
    assert context.length + len(item.responses["chosen"].input_ids) == 60
    assert len(item.responses["rejected"].input_ids) == len("No,") + 1


def test_templates_without_an_end_get_the_end_token(folder: Path, tmp_path: Path) -> None:
    save_tiny_vlm(tmp_path / "model", ends=False)
    for place in (folder, tmp_path):
        task = task_of(config_of(place))
        tokens = task.load(RowKey(TRAIN, 0, 0)).responses["chosen"].input_ids
        tokenizer = task.components.processor.tokenizer
        assert tokenizer.decode(tokens) == "Yes.</s>"
    assert (tokens == tokenizer.bos_token_id).sum() == 0
    prompt = task.load(RowKey(TRAIN, 0, 0)).contexts[0].input_ids
    assert (prompt == tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize(("what", "problem"), [("chat_template", "no chat template"), ("eos_token", "no end token")])
def test_processors_that_lack_something(folder: Path, tmp_path: Path, what: str, problem: str) -> None:
    save_tiny_vlm(tmp_path / "model")
    components = load_vlm(config_of(tmp_path).model)
    setattr(components.processor if what == "chat_template" else components.processor.tokenizer, what, None)
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match=problem):
        VLMTask(config, VLMData({TRAIN: table_of(pairs())}, ""), components, task_of(config).objective)


def weights_after(folder: Path, out: Path, **training: Any) -> dict[str, torch.Tensor]:
    config = config_of(folder, output=str(out), training={"steps": 2, "learning_rate": 1e-2, **training})
    task = task_of(config)
    Trainer(config, task, folder=out).fit()
    return {name: value.detach().clone() for name, value in task.policy.named_parameters() if value.requires_grad}


def test_accumulation_is_the_large_batch(folder: Path, tmp_path: Path) -> None:
    whole = weights_after(folder, tmp_path / "whole", batch_size=4)
    parts = weights_after(folder, tmp_path / "parts", batch_size=1, accumulation=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=2e-5, msg=name)


def test_train_resume_and_load(folder: Path, tmp_path: Path) -> None:
    """``mmalign train`` to the end, and interrupted after half of it: the same log, weights, and a report."""
    changes = {
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
        "gradient_checkpointing": True,
    }
    held_out = {"source": "vlm_canonical", "path": str(folder / "rows.parquet"), "held_out": 0.25}
    given: dict[str, Any] = {"data": held_out, "evaluation": {"every": 2}}
    straight = train(config_of(folder, output=str(tmp_path / "a"), training=changes, **given))
    train(config_of(folder, output=str(tmp_path / "b"), training={**changes, "steps": 2}, **given))
    train(config_of(folder, output=str(tmp_path / "b"), training=changes, **given), resume=True)
    logs = []
    for name in ("a", "b"):
        log = Log(None)
        log.rewind(tmp_path / name / "log.jsonl", step=4)
        logs.append([{key: v for key, v in line.items() if key != "seconds"} for line in log.training])
        assert [line["step"] for line in log.held_out] == [0, 2, 4]
    assert logs[0] == logs[1]
    assert logs[0][0]["loss"] == pytest.approx(math.log(2))
    assert logs[0][-1]["loss"] < math.log(2)
    assert straight.report is not None
    assert straight.report.is_file()
    files = [(tmp_path / name / "aligned" / "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    loads_in_plain_transformers(folder, tmp_path / "a" / "aligned")


def loads_in_plain_transformers(folder: Path, aligned: Path) -> None:
    assert json.loads((aligned / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "model")
    base = AutoModelForImageTextToText.from_pretrained(folder / "model")
    before = base(input_ids=torch.arange(10, 20)[None]).logits
    tuned = AutoModelForImageTextToText.from_pretrained(folder / "model")
    tuned.load_adapter(aligned)
    wrapped = PeftModel.from_pretrained(base, str(aligned))
    found = [model.eval()(input_ids=torch.arange(10, 20)[None]).logits for model in (tuned, wrapped)]
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - before).abs().max() > 1e-4
    assert AutoProcessor.from_pretrained(aligned).chat_template


def test_full_weights_load_in_plain_transformers(folder: Path, tmp_path: Path) -> None:
    result = train(config_of(folder, output=str(tmp_path / "run"), model=NO_LORA))
    trained = AutoModelForImageTextToText.from_pretrained(result.folder / "aligned").state_dict()
    base = AutoModelForImageTextToText.from_pretrained(folder / "model").state_dict()
    moved = {name.split(".")[1] for name, value in base.items() if not torch.equal(trained[name], value)}
    assert moved == {"language_model", "weight"}  # the head is lm_head.weight


def test_dry_run_tells_the_plan(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(folder, output=str(tmp_path / "run")), dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    # q_proj [32, 32] and v_proj [16, 32] of two layers: 2 * 2 * ((32 + 32) + (16 + 32)).
    assert "448 of" in told
    assert "the policy with its LoRA adapters off" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": {"resolution": 64}}, "data.resolution is for image generators"),
        ({"training": {"timesteps": {"kind": "turbo"}}}, "training.timesteps is for image generators"),
        ({"model": {"lora": {"rank": 2}}}, "to_k, to_q, to_v, to_out.0 are layers of image generators"),
        ({"model": {"lora": {"targets": ["q_proj"], "dropout": 0.1}}}, "model.lora.dropout: 0.1 would make"),
        ({"family": "image"}, "vlm: would be ignored by family: image"),
        ({"vlm": {"pack": "never", "row_tokens": 10}}, "vlm.row_tokens would be ignored"),
    ],
)
def test_settings_of_the_other_family(folder: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config_of(folder, **changes)


def test_mistakes_are_told_together(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "family: vlm\nmodel: {name: nowhere, lora: null}\ndata: {source: pickapic, path: nowhere.parquet}\n"
        "objective: [{loss: dpo, beta: 0.1, rejected: candidates}]\ntraining: {steps: 1}\noutput: out\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    paths = {mistake.path for mistake in caught.value.mistakes}
    assert paths == {"model.name", "data.source", "data.path", "objective"}


def test_lora_targets_that_match_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"out_proj matches no layer .*vlm.freeze: vision.* end in: .*down_proj"):
        train(config_of(folder, model={"lora": {"rank": 2, "targets": ["out_proj"]}}), dry_run=True)


def test_the_loader_and_the_adapter_know_the_same_families() -> None:
    assert PARTS.keys() == FAMILIES.keys()
    assert all(parts.text == f"model.{FAMILIES[kind].text}" for kind, parts in PARTS.items())
