"""Training a reward model end to end: what is trained, what is exported, what it costs to be wrong."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel

from mmalign.data import UnreadableImage, decode, table_of
from mmalign.losses import Objective
from mmalign.models.names import PLAYGROUND
from mmalign.playground.captions import parse
from mmalign.playground.renderer import render
from mmalign.rewards import RewardModel, find_reward
from mmalign.training.image_data import open_data
from mmalign.training.loading import ConfigError, load_config
from mmalign.training.recipe_files import recipe_names
from mmalign.training.run import train
from mmalign.training.task import HELD_OUT, TRAIN, RowKey
from mmalign.types import BranchScores, ImageBytes, PreferencePair, Scores
from reward_models.clip_folder import find_clip
from reward_models.heads import HEADS
from reward_models.training.family import trainable_losses
from reward_models.training.rows import RewardRows, collate
from reward_models.training.scorer import ClipScorer, load_scorer, make_trainable, merged_state
from tests.data.making_data import png
from tests.reward_training.tiny_rewards import HEAD_RECIPES, overrides, save_pairs, save_tiny_clip

RECIPES = [name for name in recipe_names() if load_config(name, check_files=False).family == "reward"]
RECIPES = [name for name in RECIPES if name not in HEAD_RECIPES]  # those of heads have tests of their own
BT = "playground/reward_bt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    save_tiny_clip(folder / "clip")
    save_pairs(folder / "pairs.parquet")
    return folder


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").open()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "aligned" / "model.safetensors")


def test_there_are_recipes_of_three_published_models() -> None:
    names = {f"{folder}{name}" for folder in ("playground/reward_", "rewards/") for name in ("pickscore", "hpsv2")}
    assert set(RECIPES) == names | {BT, "rewards/imagereward"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_two_steps_and_its_export_scores_as_the_log_says(name: str, tiny: Path, tmp_path: Path) -> None:
    recipe = load_config(name, check_files=False)
    assert recipe.reward is not None
    changes: dict[str, object] = {"output": tmp_path / "run", "training.gradient_checkpointing": "false"}
    for tower in ("text_layers", "image_layers"):
        if getattr(recipe.reward, tower) is not None:
            changes[f"reward.{tower}"] = 1  # of two
    config = load_config(name, overrides(tiny, **changes))
    result = train(config)
    measured = [line for line in lines_of(result.folder) if line.get("split") == HELD_OUT]
    assert [line["step"] for line in measured] == [0, 1, 2]
    assert "calibration_error" in measured[-1]
    assert result.report is not None
    assert result.report.is_file()
    reward = find_reward("clip-reward", weights=result.folder, device="cpu")
    assert isinstance(reward, RewardModel)
    rows = open_data(config, Objective(config.objective)).tables[HELD_OUT]
    gaps = [reward.score([row.prompt] * 2, [decode(image) for image in row.images]) for row in rows]
    step = json.loads((result.folder / "aligned" / "reward.json").read_text())["version"].split(",")[0]
    logged = next(line for line in measured if f"step {line['step']}" == step)
    margins = torch.stack([two[0] - two[1] for two in gaps])
    assert margins.mean().item() == pytest.approx(logged["margin"], rel=1e-4, abs=1e-4)
    assert (margins > 0).float().mean().item() == pytest.approx(logged["accuracy"])
    plain = CLIPModel.from_pretrained(result.folder / "aligned").state_dict()
    before = CLIPModel.from_pretrained(tiny / "clip").state_dict()
    assert any(not torch.equal(plain[key], before[key]) for key in before)


def test_published_hyper_parameters() -> None:
    """PickScore's and HPSv2's training scripts, ImageReward's train_one_node.sh."""
    pick, hps, image = (
        load_config(f"rewards/{name}", check_files=False) for name in ("pickscore", "hpsv2", "imagereward")
    )
    assert (pick.training.learning_rate, pick.training.weight_decay, pick.training.warmup_steps) == (3e-6, 0.3, 500)
    assert (pick.training.schedule, pick.training.steps, pick.training.max_grad_norm) == ("linear", 4000, 1.0)
    assert (hps.training.learning_rate, hps.training.weight_decay, hps.training.warmup_steps) == (3.3e-6, 0.35, 500)
    assert hps.reward is not None
    assert (hps.reward.text_layers, hps.reward.image_layers, hps.reward.fit) == (11, 19, "letterbox")
    for config, processes, batch in ((pick, 8, 128), (hps, 8, 128), (image, 4, 64)):
        assert config.training.batch_size * config.training.accumulation * processes == batch
    assert (image.training.learning_rate, image.training.warmup_steps, image.data.as_) == (1e-5, 0, "pairs")
    assert image.reward is not None
    # 70 % of 12 and of 24 layers are frozen, rounded down.
    assert (image.reward.text_layers, image.reward.image_layers) == (12 - int(12 * 0.7), 24 - int(24 * 0.7))


def test_it_learns_what_people_like(tiny: Path, tmp_path: Path) -> None:
    """The less red picture wins, which the random CLIP does not know."""
    save_pairs(tmp_path / "pairs.parquet", rows=180)
    changes = {"data.path": tmp_path / "pairs.parquet", "training.steps": 60, "training.batch_size": 16}
    changes |= {"training.learning_rate": 1e-2, "evaluation.every": 60, "output": tmp_path / "run"}
    result = train(load_config(BT, overrides(tiny, **changes)))
    first, last = (line for line in lines_of(result.folder) if line.get("split") == HELD_OUT)
    assert first["accuracy"] < 0.6
    assert last["accuracy"] > 0.75
    assert last["loss"] < first["loss"]


def test_resume_is_exact(tiny: Path, tmp_path: Path) -> None:
    lora = "{rank: 2, alpha: 2, targets: [q_proj, v_proj]}"
    changes = {"model.lora": lora, "training.schedule": "constant"}
    whole = train(load_config(BT, overrides(tiny, **changes, **{"training.steps": 4, "output": tmp_path / "whole"})))
    halves = {**changes, "output": tmp_path / "halves"}
    train(load_config(BT, overrides(tiny, **halves)))
    train(load_config(BT, overrides(tiny, **halves, **{"training.steps": 4})), resume=True)
    expected, got = weights_of(whole.folder), weights_of(tmp_path / "halves")
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    held_out = [
        [line for line in lines_of(run) if line.get("split") == HELD_OUT] for run in (whole.folder, tmp_path / "halves")
    ]
    assert held_out[0] == held_out[1]


def scorer_of(tiny: Path, **settings: object) -> ClipScorer:
    config = load_config(BT, overrides(tiny, **settings))
    assert config.reward is not None
    scorer = load_scorer(find_clip(config.model.name))
    make_trainable(scorer, config.model.lora, config.reward)
    return scorer


def test_only_the_last_layers_are_trained(tiny: Path) -> None:
    scorer = scorer_of(tiny, **{"reward.text_layers": 1, "reward.image_layers": 0})
    trained = {name for name, value in scorer.named_parameters() if value.requires_grad}
    assert "clip.logit_scale" in trained
    assert "clip.text_projection.weight" in trained
    assert not any("vis" in name for name in trained)
    layers = {name.split("layers.")[1][0] for name in trained if "layers." in name}
    assert layers == {"1"}
    assert all(value.requires_grad for value in scorer_of(tiny).parameters())


@pytest.mark.parametrize("more", ["", ", dora: true", ", rslora: true"])
def test_lora_is_merged_into_a_plain_clip_and_the_scorer_stays(more: str, tiny: Path) -> None:
    scorer = scorer_of(tiny, **{"model.lora": f"{{rank: 2, alpha: 4, targets: [q_proj, fc1]{more}}}"})
    trained = [name for name, value in scorer.named_parameters() if value.requires_grad]
    assert all("lora_" in name or name == "clip.logit_scale" for name in trained)
    with torch.no_grad():
        for name, value in scorer.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    ids, pixels = find_clip(str(tiny / "clip")).tokens()(["a red circle"]), torch.randn(1, 2, 3, 16, 16)
    before = scorer(ids, pixels)["score"]
    state = merged_state(scorer)
    plain = load_scorer(find_clip(str(tiny / "clip")))
    assert not torch.allclose(plain(ids, pixels)["score"], before, rtol=1e-3)
    plain.clip.load_state_dict(state)
    torch.testing.assert_close(plain(ids, pixels)["score"], before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scorer(ids, pixels)["score"], before, rtol=1e-5, atol=1e-5)


def test_the_scale_never_exceeds_a_hundred(tiny: Path) -> None:
    scorer = scorer_of(tiny)
    with torch.no_grad():
        scorer.clip.logit_scale.fill_(9.0)
    rewards = scorer(find_clip(str(tiny / "clip")).tokens()(["a"]), torch.randn(1, 3, 3, 16, 16))["score"]
    assert rewards.abs().max() <= 100.001
    assert scorer.clip.logit_scale.item() == pytest.approx(math.log(100))
    rewards.sum().backward()
    assert scorer.clip.logit_scale.grad is not None
    assert scorer.clip.logit_scale.grad != 0


def test_a_broken_picture_is_named_and_counts_for_nothing(tiny: Path) -> None:
    good = ImageBytes("a plain picture", data=png())
    broken = ImageBytes("row 1, column jpg_1", data=b"no picture")
    table = table_of([PreferencePair(f"{row}", "a star", good, broken if row == 1 else good) for row in range(3)])
    found = find_clip(str(tiny / "clip"))
    rows = RewardRows({TRAIN: table, HELD_OUT: table}, found.tokens(), found.preprocess("crop"), check=True)
    batch = collate([rows.load(RowKey(TRAIN, index, 0)) for index in range(3)])
    assert [batch.present[side].tolist() for side in ("chosen", "rejected")] == [[True, False, True]] * 2
    assert list(batch.unusable) == ["1"]
    assert "column jpg_1" in batch.unusable["1"]
    with pytest.raises(UnreadableImage, match="jpg_1"):  # held-out rows were looked at before
        rows.load(RowKey(HELD_OUT, 1, 0))
    rewards = load_scorer(found)(batch.ids, batch.pixels)["score"]
    scores = Scores(
        {"chosen": BranchScores(rewards[:, 0]), "rejected": BranchScores(rewards[:, 1] + 1)}, present=batch.present
    )
    # Two equal pictures a logit of 1 apart, whatever the third row says.
    assert Objective([{"loss": "bradley_terry"}])(scores).loss.item() == pytest.approx(math.log1p(math.e), rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "change", "told"),
    [
        (BT, "objective.0.loss=preference_kl", None),
        (BT, "objective=[{loss: dpo, beta: 1}]", r"asks for chosen_logratio.*choose from bradley_terry, davidson"),
        (BT, "objective=[{loss: gpm}]", "asks for chosen_features, rejected_features"),
        (BT, "data.flip=true", r"data\.flip is for generators"),
        (BT, "model.lora={rank: 2}", "layers of image generators; name those of a CLIP"),
        (BT, "model.lora={rank: 2, targets: [nothing]}", "nothing matches no layer of a CLIP"),
        (BT, "model.dtype=bfloat16", r"mixed_precision=bf16"),
        (BT, "reward.text_layers=3", "that tower has 2 layers"),
        (BT, "reward={text_layers: 0, image_layers: 0}", "nothing to train but logit_scale"),
        (BT, "model.name=playground/tiny-sdxl", "there is no CLIP"),
        (BT, "training.strategy=fsdp", "was not tried with family: reward"),
        (BT, "family=image", "reward: would be ignored|trains reward models"),
        ("playground/dpo", "objective=[{loss: bradley_terry}]", "set family: reward"),
        ("playground/dpo", "reward={}", "reward: would be ignored by family: image"),
        ("playground/vlm_dpo", "objective=[{loss: preference_ce}]", "set family: reward"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(recipe: str, change: str, told: str | None, tiny: Path) -> None:
    if recipe == BT:
        given = [line for line in overrides(tiny) if not line.startswith(change.split("=")[0] + "=")]
        lines = [*given, change]
    else:
        lines = [change]
    if told is None:
        load_config(recipe, lines)
        return
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        load_config(recipe, lines, check_files=recipe == BT)


def test_what_can_be_trained() -> None:
    scores = ["bradley_terry", "davidson", "margin_bradley_terry", "preference_ce", "preference_kl", "rao_kupper"]
    scores += ["robust_bradley_terry", "weighted_bradley_terry"]
    rankings = ["lambda_rank", "listnet", "plackett_luce", "ranklist"]
    more = {
        "gaussian": ["gaussian_bt"],
        "multi": ["multi_bradley_terry", "uncertain_multi_bradley_terry"],
        "mixture": ["mixture_bradley_terry", *rankings],
        "pal_a": ["pal_a", *rankings],
        "pal_b": ["pal_b", *rankings],
        "gpm": ["gpm"],
        "cosine": rankings,
    }
    assert {head: set(trainable_losses(head)) for head in HEADS} == {
        head: {*scores, *losses} for head, losses in more.items()
    }


def test_a_reward_needs_a_clip(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMALIGN_REWARDS", raising=False)
    with pytest.raises(ValueError, match="pass weights=RUN"):
        find_reward("clip-reward")
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "clip-reward").symlink_to(tiny / "clip")
    monkeypatch.setenv("MMALIGN_REWARDS", str(tmp_path / "rewards"))
    assert find_reward("clip-reward", device="cpu").version == "not trained as a reward"
    with pytest.raises(ValueError, match="is no CLIP"):
        find_reward("clip-reward", weights=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="describes a bert"):
        _ = find_clip(str(tmp_path)).config


def test_tokens_come_from_the_folder(tiny: Path) -> None:
    reward: Any = find_reward("clip-reward", weights=tiny / "clip", device="cpu")
    assert reward.prompt_limit == 30
    assert reward.prompt_tokens(["a red circle"]) == [3]
    picture = Image.fromarray(np.full((20, 24, 3), 200, np.uint8))
    assert reward.score(["a red circle", "a blue star"], [picture] * 2).diff().abs() > 1e-3


def test_the_shipped_clip_knows_its_playground() -> None:
    """Small, fp16, and it prefers the right picture to one of another colour, shape or background."""
    folder = PLAYGROUND / "tiny-clip"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    quality = json.loads((folder / "pretrain.json").read_text())["quality"]
    assert min(quality.values()) > 0.9
    reward = find_reward("clip-reward", weights="playground/tiny-clip", device="cpu")
    text = "a large solid red circle on a white background"
    others = [text.replace(*change) for change in (("red", "blue"), ("circle", "star"), ("white", "navy"))]
    pictures = [Image.fromarray(render(parse(caption), 64)) for caption in (text, *others)]
    assert reward.score([text] * 4, pictures).argmax() == 0
