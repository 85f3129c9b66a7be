"""The objective of every recipe against its published equation, retyped on plain floats and numbers made up by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmalign.losses import Objective
from mmalign.training.config import Config
from mmalign.training.mistakes import ConfigError
from mmalign.training.recipe_files import recipe_names, recipe_text
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.vlm_branches import branches_of, told_lacking
from mmalign.training.vlm_data import VLMData, open_vlm_data
from mmalign.training.vlms import VLMTask
from mmalign.types import BranchScores, Scores, TokenWeights
from mmalign.vlm_data import table_of, weigh_changes
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import config_of, pairs, write_rows

# Branch -> (policy, reference, tokens): log-probs of one row.
NUMBERS = {
    "chosen": (-10.0, -12.0, 8.0),
    "rejected": (-9.0, -8.5, 5.0),
    "gold": (-6.0, -7.0, 4.0),
    "chosen@crop": (-15.0, -14.0, 8.0),
    "chosen@retrieved": (-17.0, -16.5, 8.0),
    "chosen@noise": (-20.0, -19.0, 8.0),
    "chosen@blank_mean": (-13.0, -13.5, 8.0),
    "chosen@blank_zero": (-18.0, -18.0, 8.0),
    "rejected@blank_zero": (-11.0, -11.0, 5.0),
}
KL = {"chosen": 0.7, "rejected": 1.9}


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x))


def r(branch: str) -> float:
    policy, reference, _ = NUMBERS[branch]
    return policy - reference


def dpo(chosen: str = "chosen", rejected: str = "rejected", beta: float = 0.1) -> float:
    return -ls(beta * (r(chosen) - r(rejected)))


def anchor() -> float:
    return -ls(0.1 * r("chosen") - 0)


def nll(branch: str) -> float:
    return -NUMBERS[branch][0] / NUMBERS[branch][2]


def mpo() -> float:
    """0.8 DPO + 0.2 BCO + NLL; BCO's shift is the running mean of rewards, after one row the mean of this one's two."""
    shift = 0.1 * (r("chosen") + r("rejected")) / 2
    bco = -ls(0.1 * r("chosen") - shift) - ls(-(0.1 * r("rejected") - shift))
    return 0.8 * dpo() + 0.2 * bco + nll("chosen")


def chip() -> float:
    logits = (r("chosen") - r("rejected")) + (r("chosen") - r("chosen@noise")) - 0.1 * (KL["rejected"] - KL["chosen"])
    return -ls(0.1 * logits)


def v_dpo() -> float:
    def guided(side: str) -> float:
        return 1.5 * NUMBERS[side][0] - 0.5 * NUMBERS[f"{side}@blank_zero"][0] - NUMBERS[side][1]

    return -ls(0.1 * (guided("chosen") - guided("rejected")))


def ln_dpo() -> float:
    per_token = r("chosen") / NUMBERS["chosen"][2] - r("rejected") / NUMBERS["rejected"][2]
    return -0.9 * ls(2.0 * per_token) - 0.1 * ls(-2.0 * per_token)


EQUATIONS: dict[str, Callable[[], float]] = {
    "llava/dpo_lora": dpo,
    "llava/rlhf_v": dpo,  # its weights are in the log-probs
    "llava/bdhs": dpo,
    "llava/mia_dpo": dpo,
    "qwen/dpo": dpo,
    "qwen/dpo_lora": dpo,
    "playground/vlm_dpo": dpo,
    "llava/mdpo": lambda: dpo() + dpo(rejected="chosen@crop") + anchor(),
    "llava/rdpo": lambda: dpo() + dpo(rejected="chosen@retrieved"),
    "llava/visual": lambda: dpo(rejected="chosen@crop") + anchor(),
    "playground/vlm_visual": lambda: dpo(rejected="chosen@blank_mean") + anchor(),
    "llava/mpo": mpo,
    "llava/chip": chip,
    "llava/v_dpo": v_dpo,
    "llava/ln_dpo": ln_dpo,
    "qwen/mrdpo": lambda: dpo() + 0.1 * nll("gold"),
}


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load(recipe_text(name))


def scores() -> Scores:
    def row(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return Scores(
        {
            name: BranchScores(*map(row, numbers), token_kl=row(KL.get(name, math.nan)))
            for name, numbers in NUMBERS.items()
        }
    )


def test_every_recipe_has_its_equation() -> None:
    assert {name for name in recipe_names() if recipe(name).get("family") == "vlm"} == EQUATIONS.keys()


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_objective_is_the_published_equation(name: str) -> None:
    objective = Objective(recipe(name)["objective"])
    assert float(objective(scores()).loss) == pytest.approx(EQUATIONS[name](), rel=1e-12)


def test_numbers_that_were_worked_out_on_paper() -> None:
    """c - r = 2 + 0.5, c - crop = 2 + 1: softplus(-0.25) + softplus(-0.3) + softplus(-0.2)."""
    assert EQUATIONS["llava/mdpo"]() == pytest.approx(0.5759394 + 0.5543552 + 0.5981388, abs=1e-6)
    # 2.5 + 3 - 0.1 * 1.2 = 5.38: softplus(-0.538)
    assert chip() == pytest.approx(0.4599, abs=1e-4)
    # 1.5 (-10) + 9 + 12 = 6 and 1.5 (-9) + 5.5 + 8.5 = 0.5: softplus(-0.55)
    assert v_dpo() == pytest.approx(0.4555, abs=1e-4)


# --- what the rows have to bring


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    return made


def config(folder: Path, objective: list[dict], **vlm: object) -> Config:
    return config_of(folder, objective=objective, vlm=vlm)


GOLD = [{"loss": "dpo", "beta": 0.1}, {"loss": "sft", "chosen": "gold", "coefficient": 0.1}]


def test_gold_responses_count_where_rows_have_them(folder: Path, tmp_path: Path) -> None:
    rows = [replace(row, extras={"gold": "Right."}) if number != 1 else row for number, row in enumerate(pairs(3))]
    task = VLMTask.from_config(config(folder, GOLD), VLMData({TRAIN: table_of(rows)}, "rows"))
    batch = task.collate([task.load(RowKey(TRAIN, number, 7)) for number in range(3)])
    assert batch.present["gold"].tolist() == [True, False, True]
    tokens = batch.batch.responses["gold"][0]
    assert task.components.processor.tokenizer.decode(tokens.input_ids) == "Right.</s>"
    assert tokens.context == batch.batch.responses["chosen"][0].context  # one prompt, three responses
    assert task.adapter.layout(task.components.model, batch.batch, batch.batch.responses["gold"][:1]).lengths == (7,)
    scored = task.score(task.policy, batch)
    nlls = -scored["gold"].mean_logp[[0, 2]].mean().detach()
    assert float(task.objective(scored).loss.detach()) == pytest.approx(math.log(2) + 0.1 * float(nlls), rel=1e-6)
    branches = branches_of(task.objective, config(folder, GOLD).vlm)
    assert told_lacking(branches, rows) == "1 of 3 rows have no gold: they bring no gold response (extras.gold)."
    with pytest.raises(ValueError, match=r"no row has gold, so its term would count for nothing"):
        told_lacking(branches, pairs(3))
    write_rows(tmp_path, pairs(3))
    without = config_of(tmp_path, objective=GOLD, model={"name": str(folder / "model")})
    with pytest.raises(ValueError, match="no row has gold"):
        open_vlm_data(without, task.objective)
    with pytest.raises(ValueError, match="there is no branch gold@crop"):
        branches_of(Objective([{"loss": "anchor", "beta": 1, "chosen": "gold@crop"}]), config(folder, GOLD).vlm)


def test_changed_words_count_more(folder: Path) -> None:
    rows = [replace(pairs(1)[0], chosen="A red cat.", rejected="A blue cat.")]
    task = VLMTask.from_config(config(folder, GOLD[:1], changed_weight=4), VLMData({TRAIN: table_of(rows)}, "rows"))
    item = task.load(RowKey(TRAIN, 0, 7))
    weights = item.responses["chosen"].weights
    assert weights is not None
    assert weights.tolist() == [1, 1, 4, 4, 4, 1, 1, 1, 1, 1, 1]  # a character is a token; the last one is the end
    assert task.load(RowKey(TRAIN, 0, 7)).responses["rejected"].weights.tolist().count(4) == len("blue")  # type: ignore[union-attr]
    expected = weigh_changes(rows[0], 4).chosen_weights
    assert expected == TokenWeights(((2, 5, 4),))
    own = [replace(rows[0], chosen_weights=expected)]
    task = VLMTask.from_config(config(folder, GOLD[:1], changed_weight=4), VLMData({TRAIN: table_of(own)}, "rows"))
    assert "vlm.changed_weight would replace" in task.load(RowKey(TRAIN, 0, 7)).unusable


def test_the_task_scores_what_chip_and_v_dpo_ask_for(folder: Path) -> None:
    objective = [
        {"loss": "chip", "beta": 0.1, "chosen_other": "chosen@noise"},
        {
            "loss": "v_dpo",
            "beta": 0.1,
            "guidance": 2.0,
            "chosen_other": "chosen@blank_zero",
            "rejected_other": "rejected@blank_zero",
        },
    ]
    task = VLMTask.from_config(config(folder, objective), VLMData({TRAIN: table_of(pairs(1))}, "rows"))
    task.policy.train()
    scored = task.score(task.policy, task.collate([task.load(RowKey(TRAIN, 0, 7))]))
    assert scored["chosen"].token_kl.abs().max() == scored["rejected"].token_kl.abs().max() == 0
    assert not scored["rejected@blank_zero"].logp.requires_grad
    assert scored["chosen@noise"].logp.requires_grad
    output = task.objective(scored)
    assert float(output.term_losses["chip"]) == pytest.approx(math.log(2))
    gains = {side: scored[side].logp - scored[f"{side}@blank_zero"].logp for side in ("chosen", "rejected")}
    margin = float((gains["chosen"] - gains["rejected"]).detach())
    assert float(output.term_losses["v_dpo"].detach()) == pytest.approx(-ls(0.1 * margin), abs=1e-6)


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        ({"loss": "v_dpo", "beta": 0.1, "guidance": 1.0}, r"guidance must be > 1 \(1 is plain dpo"),
        ({"loss": "chip", "beta": 0.1}, "there is no branch chosen_other"),
    ],
)
def test_terms_that_could_not_be(folder: Path, term: dict, problem: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=problem):
        VLMTask.from_config(config(folder, [term]), VLMData({TRAIN: table_of(pairs(1))}, "rows"))
