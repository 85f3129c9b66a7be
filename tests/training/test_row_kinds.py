"""Rankings and single pictures through the image task: branches, labels, laws at step zero, and refusals."""

import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from row_tables import Table, pairs, rankings, singles

from mmalign.data import SOURCES
from mmalign.losses import LOSSES
from mmalign.training.config import Config
from mmalign.training.image_branches import BRANCHES, KIND_OF_SOURCE, losses_for
from mmalign.training.images import ImageTask
from mmalign.training.task import HELD_OUT, TRAIN, RowKey
from mmalign.types import GroupScores, Scores
from tests.tiny_models import tiny_sd3, tiny_sdxl

CPU = torch.device("cpu")
LISTWISE = [{"loss": name, "beta": 100} for name in ("plackett_luce", "listnet", "lambda_rank", "ranklist")]
UNPAIRED = [
    {"loss": "kto", "beta": 100, "kl": "running"},
    {"loss": "diffusion_kto", "beta": 100},
    {"loss": "bco", "beta": 100, "shift": "running"},
]
TABLES = {"pair": pairs, "ranking": rankings, "unary": singles}
OBJECTIVES = {"pair": {"loss": "dpo", "beta": 100}, "ranking": LISTWISE[0], "unary": UNPAIRED[0]}
# Of one row whose candidates have the labels 0, 1, 2, at log-ratio 0 everywhere.
AT_ZERO = {
    "plackett_luce": math.log(6),
    "listnet": math.log(3),
    "ranklist": math.log(1 + 3),
    "lambda_rank": math.log(2)
    * sum(
        abs(2**better - 2**worse) * abs(1 / math.log(4 - better) - 1 / math.log(4 - worse))
        for better, worse in ((2, 1), (2, 0), (1, 0))
    ),
    "kto": 0.5,
    "diffusion_kto": 0.5,
    "bco": math.log(2),
}
Make = Callable[..., ImageTask]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl(folder / "sdxl")
    tiny_sd3(folder / "sd3")
    return {"sdxl": folder / "sdxl", "sd3": folder / "sd3"}


def config_of(model: Path, table: Table, objective: dict[str, Any], output: Path, **data: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"name": str(model)},
            "data": {"source": "images", "path": table.path, "resolution": 32, **data},
            "objective": [objective],
            "training": {"steps": 2, "batch_size": 2},
            "evaluation": {"every": 1} if data.get("held_out") else {},
            "output": str(output / "run"),
        }
    )


@pytest.fixture
def make(models: dict[str, Path], tmp_path: Path) -> Make:
    def make(table: Table, objective: dict[str, Any], model: str = "sdxl", **data: Any) -> ImageTask:
        task = ImageTask.from_config(config_of(models[model], table, objective, tmp_path, **data))
        task.prepare(CPU)
        return task

    return make


def perturb(task: ImageTask) -> ImageTask:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return task


def keys(*indices: int) -> list[RowKey]:
    return [RowKey(TRAIN, index, 100 + index) for index in indices]


def score(task: ImageTask, rows: list[RowKey]) -> Scores:
    return task.score(task.policy, task.collate([task.load(key) for key in rows]).to(CPU))


@pytest.mark.parametrize("objective", [*LISTWISE, *UNPAIRED], ids=lambda term: term["loss"])
def test_step_zero(make: Make, tmp_path: Path, objective: dict[str, Any]) -> None:
    table = Table(tmp_path / "table")
    for row in range(2):
        if objective in LISTWISE:
            table.add_ranking([1.0, 0.0, 2.0])
        else:
            table.add_single(desirable=row == 0)
    task = make(table, objective)
    scores = score(task, keys(0, 1))
    (branch,) = scores.branches.values()
    assert branch.logratio.count_nonzero() == 0
    expected = AT_ZERO[objective["loss"]]
    assert task.objective(scores).loss.item() == pytest.approx(expected, rel=1e-6)
    if objective in LISTWISE:
        assert isinstance(branch, GroupScores)
        assert branch.logp.shape == (2, 3)
        assert scores.labels is not None
        assert scores.labels.tolist() == [[1.0, 0.0, 2.0]] * 2
    else:
        assert scores.desirable is not None
        assert scores.desirable.tolist() == [True, False]
    assert score(perturb(task), keys(0, 1)).branches.popitem()[1].logratio.abs().min() > 0


@pytest.mark.parametrize(("kind", "model"), [("ranking", "sdxl"), ("ranking", "sd3"), ("unary", "sdxl")])
def test_cached_scores_equal_uncached_ones_and_do_not_depend_on_the_batch(
    make: Make, tmp_path: Path, kind: str, model: str
) -> None:
    table = TABLES[kind](tmp_path / "table")
    plain, cached = (perturb(make(table, OBJECTIVES[kind], model, cache=cache)) for cache in ("none", "memory"))
    rows = keys(1, 2, 4)
    (branch,) = plain.objective.branches
    together = score(plain, rows)[branch].logratio
    assert together.abs().min() > 0
    assert torch.equal(score(cached, rows)[branch].logratio, together)
    alone = torch.cat([score(plain, [row])[branch].logratio for row in rows])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_candidates_of_a_row_share_noise_and_timestep(make: Make, tmp_path: Path) -> None:
    table = Table(tmp_path / "table")
    same = table.picture()
    table.add(candidates=[same, same, table.picture()], labels=[2, 1, 0])
    table.add_ranking([2, 1, 0])
    task = make(table, OBJECTIVES["ranking"])
    # Without the VAE's noise, which every candidate draws for itself, equal pictures have equal scores.
    moments = task._encoding.moments  # type: ignore[union-attr]
    task._encoding.moments = lambda batch, branch: (moments(batch, branch)[0], torch.zeros(()))  # type: ignore[union-attr, method-assign]
    first, second, third = score(task, keys(0))["candidates"].logp[0].tolist()
    assert first == pytest.approx(second, abs=1e-6)
    assert abs(first - third) > 1e-5


def test_a_row_of_k_candidates_is_one_term_of_the_mean(make: Make, tmp_path: Path) -> None:
    task = perturb(make(rankings(tmp_path / "table"), OBJECTIVES["ranking"]))
    scores = score(task, keys(1, 2))
    output = task.objective(scores)
    assert output.term_losses["plackett_luce"].shape == (2,)
    assert output.loss.item() == pytest.approx(output.term_losses["plackett_luce"].mean().item())


def test_rankings_of_different_length_go_in_groups(make: Make, tmp_path: Path) -> None:
    task = make(rankings(tmp_path / "table"), OBJECTIVES["ranking"])
    groups = task.layout(TRAIN).groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 1, 0, 1, 1]
    assert "Candidates per prompt (rows): 3 (2), 4 (4)." in task.data.report
    assert task.collate([task.load(key) for key in keys(0, 3)]).pixels["candidates"].shape == (2, 3, 3, 32, 32)
    assert make(singles(tmp_path / "singles"), OBJECTIVES["unary"]).layout(TRAIN).groups is None


def test_caption_dropout_flip_and_held_out_rows(make: Make, tmp_path: Path) -> None:
    table = rankings(tmp_path / "table")
    settings = {"held_out": 0.4, "caption_dropout": 1.0, "flip": True, "crop": "random"}
    task = make(table, OBJECTIVES["ranking"], **settings)
    held_out = [task.load(RowKey(HELD_OUT, 0, seed)) for seed in range(4)]
    assert all(row.prompt for row in held_out)
    assert all(torch.equal(row.pixels["candidates"], held_out[0].pixels["candidates"]) for row in held_out)
    trained = [task.load(RowKey(TRAIN, 0, seed)) for seed in range(8)]
    assert not any(row.prompt for row in trained)
    mirrored = [row.pixels["candidates"].flip(-1) for row in trained]
    assert any(torch.equal(one.pixels["candidates"], other) for one in trained for other in mirrored)


@pytest.mark.parametrize(("kind", "other"), list(permutations(TABLES, 2)))
def test_an_objective_for_other_rows_is_refused_with_those_that_fit(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, other: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("mmalign.training.images.load_components", refuse)
    config = config_of(models["sdxl"], TABLES[kind](tmp_path / "table"), OBJECTIVES[other], tmp_path)
    with pytest.raises(ValueError, match="there is no branch") as refusal:
        ImageTask.from_config(config)
    message = str(refusal.value)
    fitting = {"pair": "dpo", "ranking": "plackett_luce", "unary": "kto"}
    assert fitting[kind] in message
    assert ("data.as: pairs" in message) == (kind == "ranking")


def test_kinds_are_known_of_sources_that_exist() -> None:
    assert set(KIND_OF_SOURCE) <= set(SOURCES)
    assert set(KIND_OF_SOURCE.values()) <= set(BRANCHES)


def test_every_loss_has_rows_that_it_trains_on() -> None:
    fitting = {kind: set(losses_for(kind)) for kind in BRANCHES}
    assert {"plackett_luce", "listnet", "lambda_rank", "ranklist"} <= fitting["ranking"]
    assert fitting["unary"] == {"kto", "diffusion_kto", "bco"}
    assert {"dpo", "mapo", "sft", "soft_dpo", "margin_dpo"} <= fitting["pair"]
    assert sum(map(len, fitting.values())) == len(set().union(*fitting.values()))  # no loss is of two kinds
    # A gold response, and responses with other pictures, are branches of vision-language models.
    assert LOSSES.keys() - set().union(*fitting.values()) == {"triple", "chip", "v_dpo"}


@pytest.mark.parametrize(
    ("kind", "term", "message"),
    [
        ("pair", {"loss": "kto", "beta": 1, "sample": "chosen"}, "the rows have no desirable"),
        ("pair", {"loss": "listnet", "candidates": "chosen"}, "candidates: chosen is not possible"),
        ("ranking", {"loss": "sft", "chosen": "candidates"}, "chosen: candidates is not possible"),
        ("unary", {"loss": "soft_dpo", "beta": 1, "chosen": "sample"}, "there is no branch rejected"),
    ],
)
def test_renamed_branches_do_not_slip_through(
    models: dict[str, Path], tmp_path: Path, kind: str, term: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTask.from_config(config_of(models["sdxl"], TABLES[kind](tmp_path / "table"), term, tmp_path))


def test_sft_trains_on_desirable_pictures(make: Make, tmp_path: Path) -> None:
    task = make(singles(tmp_path / "table"), {"loss": "sft", "chosen": "sample"})
    assert task.objective(score(task, keys(0, 1))).loss.isfinite()


def test_pairs_read_as_single_pictures_train_kto(make: Make, tmp_path: Path) -> None:
    task = make(pairs(tmp_path / "table", 4), OBJECTIVES["unary"], **{"as": "unary"})
    assert task.size(TRAIN) == 8
    desirable = score(task, keys(*range(8))).desirable
    assert desirable is not None
    assert desirable.tolist() == [True, False] * 4
