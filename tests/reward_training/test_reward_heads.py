"""Reward models with heads and rankings: what each head computes, how it is trained, exported, loaded and asked."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmalign.data import decode
from mmalign.losses import Objective
from mmalign.losses.metrics import preference_metrics, ranking_metrics
from mmalign.rewards import DifferentiableReward, EmbeddingReward, RewardModel, find_reward, score_many
from mmalign.training.config import HEAD_SETTINGS, LoRAConfig, RewardConfig
from mmalign.training.image_data import open_data
from mmalign.training.loading import ConfigError, load_config
from mmalign.training.run import train
from mmalign.training.task import HELD_OUT
from mmalign.types import PreferencePair, Ranking, Row
from reward_models.clip_folder import find_clip
from reward_models.heads import HEADS, OF_USERS, OFFERS, PER_PICTURE, build_head
from reward_models.heads.terms import list_scores, pair_scores
from reward_models.training.scorer import asked, head_settings, load_scorer, make_trainable
from tests.reward_training.tiny_rewards import (
    HEAD_RECIPES,
    overrides,
    save_dimensions,
    save_pairs,
    save_rankings,
    save_tiny_clip,
    save_users,
)

PAL, MULTI, GPM = "playground/reward_pal", "playground/reward_multi", "playground/reward_gpm"
WIDTH = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "gaussian": {"hidden": 6, "dropout": 0.0},
    "multi": {"hidden": 6, "dropout": 0.0, "dimensions": {"colour": 3.0, "shape": 1.0}},
    "mixture": {"hidden": 6, "dropout": 0.0, "groups": 3, "users": 4},
    "pal_a": {"hidden": 6, "dropout": 0.0, "groups": 3, "users": 4, "features": 5},
    "pal_b": {"hidden": 6, "dropout": 0.0, "groups": 3, "users": 4, "features": 5},
    "gpm": {"hidden": 6, "dropout": 0.0, "features": 4, "tau": 0.1},
}
# Run -> recipe and what is changed in it; each recipe, and two heads that have none of their own.
RUNS = {name: (name, {}) for name in HEAD_RECIPES} | {
    "pal_a": (PAL, {"reward.head.kind": "pal_a", "objective.0.loss": "pal_a"}),
    "mixture": (PAL, {"reward.head": "{kind: mixture}", "objective.0.loss": "mixture_bradley_terry"}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    save_tiny_clip(folder / "clip")
    save_pairs(folder / "pairs.parquet")
    save_users(folder / "users.parquet")
    save_rankings(folder / "rankings.parquet")
    save_dimensions(folder / "dimensions.parquet")
    return folder


def lines_for(recipe: str, tiny: Path, **changes: object) -> list[str]:
    source, file = HEAD_RECIPES[recipe]
    settings = {"data.source": source, "data.path": tiny / file, "training.gradient_checkpointing": "false"}
    return overrides(tiny, **(settings | changes))


@pytest.fixture(scope="module")
def runs(tiny: Path) -> dict[str, Path]:
    """Every run, of two steps."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.training.run.write_report", lambda folder: folder)
        for number, (name, (recipe, changes)) in enumerate(RUNS.items()):
            settings = {"output": tiny / f"run-{number}", "evaluation.every": 2, **changes}
            made[name] = train(load_config(recipe, lines_for(recipe, tiny, **settings))).folder
    return made


def asked_of(
    head: torch.nn.Module, k: int = 2, rows: int = 4, users: Sequence[int] = (0, 1, 2, -1)
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    text, image = torch.randn(rows, WIDTH, generator=draw), torch.randn(rows, k, WIDTH, generator=draw)
    text, image = text / text.norm(dim=-1, keepdim=True), image / image.norm(dim=-1, keepdim=True)
    return head(text, image, 3 * (text[:, None] * image).sum(-1), torch.tensor(users))


def head_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_head(WIDTH, {"kind": kind, **SETTINGS[kind]})


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_a_head_gives_what_its_losses_may_ask_for(kind: str) -> None:
    assert set(SETTINGS[kind]) - {"users", "tau"} == set(HEAD_SETTINGS[kind])
    given = asked_of(head_of(kind))
    assert given["score"].shape == (4, 2)
    extras = pair_scores(given).extras
    assert set(extras) == OFFERS[kind] - {"part_preference"}
    assert all(len(value) == 4 and value.isfinite().all() for value in extras.values())
    for name in set(given) & set(PER_PICTURE):
        assert torch.equal(extras[f"rejected_{name}"], given[name][:, 1])


def test_a_gaussian_head_starts_as_the_clip_with_a_standard_deviation_of_1() -> None:
    given, plain = asked_of(head_of("gaussian")), asked_of(head_of("cosine"))
    assert torch.equal(given["score"], plain["score"])
    assert torch.equal(given["std"], torch.ones(4, 2))


def test_the_overall_score_weighs_the_dimensions() -> None:
    given = asked_of(head_of("multi"))
    torch.testing.assert_close(given["score"], 0.75 * given["parts"][..., 0] + 0.25 * given["parts"][..., 1])


def test_weights_of_users() -> None:
    """Positive, sum 1, different from user to user; nobody in particular has the mean."""
    for kind in OF_USERS:
        head: Any = head_of(kind)
        weights = head.user_weights(torch.tensor([0, 1, 2, 3, -1]))
        torch.testing.assert_close(weights.sum(-1), torch.ones(5))
        torch.testing.assert_close(weights[4], weights[:4].mean(0))
        assert weights[0].sub(weights[1]).abs().max() > 1e-3
    mixture = asked_of(head_of("mixture"))
    torch.testing.assert_close(mixture["score"], torch.einsum("bkg,bg->bk", mixture["parts"], mixture["part_weights"]))


def test_scores_of_ideal_points() -> None:
    given = asked_of(head_of("pal_a"))
    torch.testing.assert_close(given["score"][1, 0], -torch.dist(given["features"][1, 0], given["ideal_point"][1]))
    given = asked_of(head_of("pal_b"))
    cosine = torch.cosine_similarity(given["features"][1, 0], given["ideal_direction"][1], dim=0)
    torch.testing.assert_close(given["score"][1, 0], given["score_scale"][1] * cosine)
    assert given["score_scale"][0].item() == pytest.approx(10)
    # The loss on features and Bradley-Terry on the scores are one thing.
    losses = [Objective([{"loss": name}])(pair_scores(given)).loss for name in ("pal_b", "bradley_terry")]
    torch.testing.assert_close(*losses)


def test_a_general_preference_is_antisymmetric_and_its_pairs_score_as_its_loss_says() -> None:
    head = head_of("gpm")
    given = asked_of(head)
    torch.testing.assert_close(given["score"][:, 0], -given["score"][:, 1])
    losses = [Objective([{"loss": name}])(pair_scores(given)).loss for name in ("gpm", "bradley_terry")]
    torch.testing.assert_close(*losses)
    alone = asked_of(head, k=1)["score"]
    head.get_buffer("opponents").normal_()
    assert not torch.allclose(asked_of(head, k=1)["score"], alone)


def test_a_row_that_lacks_a_side_costs_nothing_whatever_the_head_says() -> None:
    given = {"score": torch.zeros(2, 2), "features": torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[math.nan] * 2] * 2])}
    present = {"chosen": torch.tensor([True, False])}
    assert Objective([{"loss": "gpm", "tau": 1.0}])(pair_scores(given, present=present)).loss.item() == pytest.approx(
        -math.log(torch.sigmoid(torch.tensor(1.0)).item())
    )


def test_ties_of_people_state_no_preference() -> None:
    score, labels = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[2.0, 1.0, 1.0]])
    for loss in ("plackett_luce", "ranklist"):
        of = [
            Objective([{"loss": loss}])(list_scores({"score": given}, labels, {})).loss
            for given in (score, score[:, [0, 2, 1]])
        ]
        torch.testing.assert_close(*of)
    flat = list_scores({"score": score}, torch.ones(1, 3), {})
    assert Objective([{"loss": "ranklist"}])(flat).loss.item() == 0


def pictures(row: Row) -> list[Any]:
    return [decode(image) for image in row.images]


def logged_as(reward: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy and margin of the exported reward, as the held-out measure counts them."""
    if isinstance(rows[0], Ranking):
        scores = torch.stack([reward.score([row.prompt] * len(row.images), pictures(row)) for row in rows])
        labels = torch.tensor([row.labels for row in rows if isinstance(row, Ranking)])
        found = ranking_metrics(list_scores({"score": scores}, labels, {}))[0]
    else:
        margins = []
        for row in rows:
            assert isinstance(row, PreferencePair)
            one = reward.for_user(row.user_id) if reward.users else reward
            chosen, rejected = pictures(row)
            if reward.kind == "gpm":
                margins.append(one.compare([row.prompt], [chosen], [rejected])[0])
            else:
                margins.append(one.score([row.prompt] * 2, [chosen, rejected]) @ torch.tensor([1.0, -1.0]))
        score = torch.stack([torch.stack(margins), torch.zeros(len(margins))], dim=1)
        found = preference_metrics(pair_scores({"score": score}))
    return {name: found[name].mean().item() for name in ("accuracy", "margin")}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_two_steps_are_exported_and_score_as_the_log_says(name: str, runs: dict[str, Path], tiny: Path) -> None:
    recipe, changes = RUNS[name]
    config = load_config(recipe, lines_for(recipe, tiny, **changes))
    measured = [line for line in map(json.loads, (runs[name] / "log.jsonl").open()) if line.get("split") == HELD_OUT]
    assert [line["step"] for line in measured] == [0, 2]
    reward: Any = find_reward("clip-reward", weights=runs[name], device="cpu")
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, DifferentiableReward)
    assert isinstance(reward, EmbeddingReward)
    table = open_data(config, Objective(config.objective)).tables[HELD_OUT]
    rows = [row for row in table if isinstance(row, PreferencePair | Ranking)]
    got = logged_as(reward, rows)
    assert got["margin"] == pytest.approx(measured[-1]["margin"], rel=1e-3, abs=1e-4)
    assert got["accuracy"] == pytest.approx(measured[-1]["accuracy"])
    images, prompts = pictures(rows[0]), [rows[0].prompt] * len(rows[0].images)
    by_folder = find_reward(str(runs[name]), device="cpu")
    shared = score_many([reward, by_folder], prompts, images)
    torch.testing.assert_close(shared["clip-reward"], reward.score(prompts, images))
    torch.testing.assert_close(shared[str(runs[name])], shared["clip-reward"])
    with pytest.raises(ValueError, match="would be ignored"):
        find_reward(str(runs[name]), weights=tiny)
    assert reward.score([], []).shape == (0,)


def test_a_new_user_is_learnt_from_a_few_pairs_and_nothing_else_moves(runs: dict[str, Path], tiny: Path) -> None:
    config = load_config(PAL, lines_for(PAL, tiny))
    rows = [
        row for row in open_data(config, Objective(config.objective)).tables["train"] if isinstance(row, PreferencePair)
    ]
    liked = [row for row in rows if row.user_id == "0"][:4]
    prompts = [row.prompt for row in liked]
    sides = [[decode(image) for image in side] for side in zip(*(row.images for row in liked), strict=True)]
    for name in (PAL, "pal_a", "mixture"):
        reward: Any = find_reward("clip-reward", weights=runs[name], device="cpu")
        before = reward.score(prompts, sides[0]), [value.clone() for value in reward.head.state_dict().values()]
        fitted = reward.new_user(prompts, *sides, steps=20)
        other = reward.new_user(prompts, *sides[::-1], name="other", steps=20)
        for kept, was in zip(reward.head.state_dict().values(), before[1], strict=True):
            assert torch.equal(kept, was)
        assert torch.equal(reward.score(prompts, sides[0]), before[0])
        for key, value in fitted.head.state_dict().items():
            assert torch.equal(value[:4] if "user_weights" in key else value, reward.head.state_dict()[key])
        mean_user, liking, disliking = (one.compare(prompts, *sides) for one in (reward, fitted, other))
        assert softplus(-liking).mean() < softplus(-mean_user).mean()
        assert softplus(disliking).mean() < softplus(mean_user).mean()
        assert fitted.version.endswith("user new user")
    with pytest.raises(ValueError, match="use for_user"):
        reward.new_user(prompts, *sides, name="0")
    with pytest.raises(ValueError, match="at least one pair"):
        reward.new_user([], [], [])
    with pytest.raises(ValueError, match="users: 0, 1"):
        find_reward("clip-reward", weights=runs[PAL], user="somebody")
    with pytest.raises(ValueError, match="knows no users"):
        find_reward("clip-reward", weights=runs[GPM]).new_user(prompts, *sides)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="without users"):
        find_reward("clip-reward", weights=tiny / "clip", user="0")


def test_what_a_head_says_beside_its_score(runs: dict[str, Path]) -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 16, 16, 3), generator=draw, dtype=torch.uint8)
    from PIL import Image

    images = [Image.fromarray(each.numpy()) for each in noise]
    prompts = ["a red circle"] * 2
    multi: Any = find_reward("clip-reward", weights=runs[MULTI], device="cpu")
    parts = multi.details(prompts, images)["parts"]
    assert parts.shape == (2, len(multi.head.names))
    torch.testing.assert_close(multi.score(prompts, images), parts.mean(-1))
    gauss: Any = find_reward("clip-reward", weights=runs["playground/reward_gaussian"], device="cpu")
    said, sure = gauss.details(prompts, images), gauss.compare(prompts[:1], images[:1], images[1:])
    gap = (said["score"][0] - said["score"][1]).item()
    assert said["std"].shape == (2,)
    assert 0 < sure.item() / gap < 1  # a probability that averages over what is unsure is nearer to one half
    for name in (GPM, "mixture", "playground/reward_gaussian"):
        one: Any = find_reward("clip-reward", weights=runs[name], device="cpu")
        there, back = one.compare(prompts[:1], images[:1], images[1:]), one.compare(prompts[:1], images[1:], images[:1])
        torch.testing.assert_close(there, -back, rtol=1e-3, atol=1e-5)


def test_a_head_without_its_weights_or_with_others_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    for file in (runs[GPM] / "aligned").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no head\.safetensors"):
        find_reward("clip-reward", weights=tmp_path)
    (tmp_path / "head.safetensors").symlink_to(runs[MULTI] / "aligned" / "head.safetensors")
    with pytest.raises(ValueError, match=r"not the weights of the head that reward\.json tells"):
        find_reward("clip-reward", weights=tmp_path)


def test_what_is_trained_beside_the_head(tiny: Path) -> None:
    def names(kind: str, loss: str, lora: LoRAConfig | None = None, **more: object) -> set[str]:
        reward = RewardConfig.model_validate({"text_layers": 0, "image_layers": 0, "head": {"kind": kind, **more}})
        if lora is not None:
            reward = RewardConfig.model_validate({"head": {"kind": kind, **more}})
        objective = Objective([{"loss": loss}])
        scorer = load_scorer(find_clip(str(tiny / "clip")), head_settings(reward.head, objective, users=2))
        make_trainable(scorer, lora, reward, asked(objective))
        return {name for name, value in scorer.named_parameters() if value.requires_grad}

    assert names("gpm", "gpm") == {f"head.network.{layer}.{of}" for layer in (0, 3) for of in ("weight", "bias")}
    plain = names("multi", "multi_bradley_terry", dimensions={"colour": 1.0})
    weighed = names("multi", "uncertain_multi_bradley_terry", dimensions={"colour": 1.0})
    assert weighed - plain == {"head.log_variance"}
    assert "clip.logit_scale" in plain
    tuned = names("gaussian", "gaussian_bt", LoRAConfig(rank=2, alpha=2, targets=["q_proj"]))
    assert any("lora_A" in name for name in tuned)
    assert {name.split(".")[0] for name in tuned if "lora" not in name and "logit_scale" not in name} == {"head"}


LIST, GAUSS = "playground/reward_listwise", "playground/reward_gaussian"


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        (GAUSS, ["objective=[{loss: bradley_terry}]"], "would not be trained whole: a term has to be gaussian_bt"),
        (GAUSS, ["reward.head.kind=gpm"], "objective.0 .gaussian_bt. asks for chosen_std"),
        (
            GAUSS,
            ["reward.head.groups=3"],
            r"reward\.head\.groups would be ignored: kind: gaussian takes hidden, dropout",
        ),
        (GPM, ["objective=[{loss: plackett_luce}]"], "reads rankings, for which reward.head.kind: gpm gives no scores"),
        (GPM, ["reward.head.features=3"], "must be even"),
        (
            PAL,
            ["objective=[{loss: gpm}]"],
            "does not read ideal_direction, score_scale, of which reward.head.kind: pal_b",
        ),
        (GPM, ["objective=[{loss: gpm, tau: 0.1}, {loss: gpm, tau: 1.0}]"], "several tau"),
        (MULTI, ["reward.head.dimensions={}"], "is empty; name the columns"),
        (MULTI, ["reward.head.dimensions={colour: -1}"], "0 or more, and one of them above 0"),
        (MULTI, ["objective=[{loss: bradley_terry}]"], "has to be multi_bradley_terry or uncertain_multi"),
        (LIST, ["data.source=pickapic"], "gives pair rows, and the objective is trained on rankings"),
        (LIST, ["objective=[{loss: bradley_terry}]", "data.source=imagereward"], r"with data\.as: pairs"),
        (LIST, ["objective=[{loss: ranklist}, {loss: bradley_terry}]"], "terms over pairs and terms over rankings"),
        (LIST, ["reference.kind=frozen"], "a reward model has no reference"),
        (
            PAL,
            ["reward.head.kind=cosine", "reward.head.groups=2", "objective.0.loss=bradley_terry"],
            "nothing to train",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(recipe: str, changes: list[str], told: str, tiny: Path) -> None:
    given = {change.split("=")[0] for change in changes}
    lines = [line for line in lines_for(recipe, tiny) if line.split("=")[0] not in given]
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        load_config(recipe, [*lines, *changes])


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        (PAL, {"data.path": "pairs.parquet"}, "learns how users differ, and there is one: 0"),
        (PAL, {"data.path": "dimensions.parquet", "data.source": "canonical"}, "rows have no user_id"),
        (MULTI, {"reward.head.dimensions": "{colour: 1, style: 1}"}, "no row has a label in style; columns of"),
        (
            MULTI,
            {"data.path": "pairs.parquet", "data.source": "pickapic", "reward.head.dimensions": "{ranking_id: 1}"},
            r"must be a probability in \[0, 1\]",
        ),
    ],
)
def test_rows_that_lack_what_the_head_needs(recipe: str, changes: dict[str, str], told: str, tiny: Path) -> None:
    if "data.path" in changes:
        changes = changes | {"data.path": str(tiny / changes["data.path"])}
    config = load_config(recipe, lines_for(recipe, tiny, **changes, output=tiny / "refused"))
    with pytest.raises(ValueError, match=told):
        train(config)
