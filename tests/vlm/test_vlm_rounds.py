"""Rounds: merged model, fresh adapters, new reference; interrupted anywhere, they are the uninterrupted run."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmalign.models.lora_weights import merged
from mmalign.models.vlm_export import read_vlm_adapter
from mmalign.training import rounds
from mmalign.training.config import Config
from mmalign.training.config.reference import ReferenceConfig
from mmalign.training.mistakes import ConfigError
from mmalign.training.run import train
from mmalign.training.run_folder import RunFolder
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.vlm_run import VLMRun
from mmalign.training.vlms import VLMTask
from tests.training.two_processes import on_two
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import LORA, config_of, pairs, write_rows

GDPO = [{"loss": "dpo", "beta": 0.1}, {"loss": "sft", "chosen": "gold", "coefficient": 0.1}]
KEY = RowKey(TRAIN, 0, 7)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    write_rows(made, [replace(row, extras={"gold": f"A {index}."}) for index, row in enumerate(pairs())])
    return made


def config(folder: Path, out: Path, **training: Any) -> Config:
    lora = {**LORA, "train_also": ["multi_modal_projector"]}
    settings = {"steps": 2, "rounds": 2, "checkpoint_every": 1, "learning_rate": 1e-2, **training}
    return config_of(folder, model={"lora": lora}, objective=GDPO, training=settings, output=str(out))


def killed_once(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], *, after: bool) -> None:
    inner = getattr(owner, name)

    def call(*given: Any, **more: Any) -> Any:
        result = inner(*given, **more) if after else None
        if when(*given):
            raise Killed
        return result if after else inner(*given, **more)

    patch.setattr(owner, name, call)


INTERRUPTIONS: tuple[tuple[Any, str, Callable[..., bool], bool], ...] = (
    (RunFolder, "export", lambda run, *given, **more: True, False),  # all steps are done, nothing is written
    (rounds, "merge_round", lambda *given: True, False),  # between two rounds
    (RunFolder, "save", lambda run, state, rows: run.folder.name == "round_2" and state.step == 1, True),
)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, and ``killed`` three times on its way."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.training.run.write_report", lambda folder: folder)
        train(config(folder, root / "whole"))
        for number, (owner, name, when, after) in enumerate(INTERRUPTIONS):
            with patch.context() as once:
                killed_once(once, owner, name, when, after=after)
                with pytest.raises(Killed):
                    train(config(folder, root / "killed"), resume=number > 0)
        train(config(folder, root / "killed"), resume=True)
    return root


def lines(place: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (place / "log.jsonl").open()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def test_a_run_that_is_killed_in_and_between_rounds_is_the_whole_one(runs: Path) -> None:
    for number in (1, 2):
        whole, killed = (lines(runs / run / f"round_{number}") for run in ("whole", "killed"))
        assert [line["step"] for line in whole] == [1, 2]
        assert killed == whole
    files = ("aligned/model.safetensors", "round_2/aligned/adapter_model.safetensors")
    for file in files:
        assert (runs / "killed" / file).read_bytes() == (runs / "whole" / file).read_bytes()


def test_each_round_starts_at_zero_with_gdpo_s_loss(runs: Path) -> None:
    """log 2 + 0.1 NLL of the gold response, whatever the round: the reference is the model that it starts from."""
    for number in (1, 2):
        first = lines(runs / "whole" / f"round_{number}")[0]
        assert first["margin"] == first["chosen_logratio"] == 0
        assert first["loss_dpo"] == pytest.approx(0.693147, abs=1e-6)
        assert first["loss"] == pytest.approx(first["loss_dpo"] + 0.1 * first["loss_sft"], abs=1e-6)


def test_the_reference_of_a_round_is_the_policy_of_the_one_before(folder: Path, runs: Path) -> None:
    """Reference log-probs of round 2 = policy log-probs at the end of round 1, but for fp32 rounding in the merge."""
    whole = config(folder, runs / "whole")
    first, second = rounds._rounds(whole)
    trained = VLMTask.from_config(first)
    stored = load_file(runs / "whole" / "round_1" / "checkpoints" / "step_000002" / "weights.safetensors")
    trained.policy.load_state_dict(stored, strict=False)
    fresh = VLMTask.from_config(second)
    with torch.no_grad():
        policy = trained.score(trained.policy, trained.collate([trained.load(KEY)]))
        reference = fresh.score(fresh.policy, fresh.collate([fresh.load(KEY)]))
    assert policy.chosen_logratio.abs() > 1e-2
    torch.testing.assert_close(reference.ref_chosen_logp, policy.chosen_logp, rtol=0, atol=2e-5)
    assert reference.chosen_logratio.abs().max() == 0


def test_the_last_round_is_merged_into_a_model_of_plain_transformers(runs: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(runs / "whole" / "round_1" / "merged").state_dict()
    after = AutoModelForImageTextToText.from_pretrained(runs / "whole" / "aligned").state_dict()
    weights = read_vlm_adapter(runs / "whole" / "round_2" / "aligned")
    assert all(
        torch.equal(after[f"{name}.weight"], merged(before[f"{name}.weight"], of))
        for name, of in weights.layers.items()
    )
    assert all(torch.equal(after[name], value) for name, value in weights.modules.items())
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {f"{name}.weight" for name in weights.layers} | set(weights.modules)


def test_rounds_differ_in_order_and_first_adapter(folder: Path, tmp_path: Path) -> None:
    first, second = rounds._rounds(config(folder, tmp_path))
    assert first.training.seed != second.training.seed
    assert (first.training.rounds, second.training.rounds) == (1, 1)
    assert second.model.name == str(tmp_path / "round_1" / "merged")


def _in_rounds(folder: Path, out: Path, batch_size: int) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.training.run.write_report", lambda folder: folder)
        given = config(folder, out, steps=1, batch_size=batch_size)
        train(given)
        with pytest.raises(ValueError, match="is of an earlier run"):
            train(given)
    return len(list(out.glob("round_*")))


def test_two_processes_do_the_rounds_of_one(folder: Path, tmp_path: Path) -> None:
    assert on_two(functools.partial(_in_rounds, folder, tmp_path / "two", 2)) == [2, 2]
    _in_rounds(folder, tmp_path / "one", 4)
    two, one = (load_file(tmp_path / name / "aligned" / "model.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=5e-3, msg=name)


def test_each_round_keeps_reference_scores_of_its_own(folder: Path, tmp_path: Path) -> None:
    given = config(folder, tmp_path, rounds=3).model_copy(
        update={"reference": ReferenceConfig(kind="cached", path=str(tmp_path / "scores"))}
    )
    paths = [of_round.reference.path for of_round in rounds._rounds(given)]
    assert paths == [str(tmp_path / name) for name in ("scores", "scores_round_2", "scores_round_3")]


def test_other_settings_and_used_folders(folder: Path, runs: Path) -> None:
    with pytest.raises(ValueError, match=r"round_1 is of an earlier run: go on with --resume"):
        train(config(folder, runs / "whole"))
    with pytest.raises(ValueError, match=r"(?s)was trained with other settings:.*learning_rate: 0.01 then, 0.02 now"):
        train(config(folder, runs / "whole", learning_rate=2e-2), resume=True)
    with pytest.raises(ValueError, match="there is no round in"):
        train(config(folder, runs / "nowhere"), resume=True)


def test_rounds_are_in_the_plan_and_for_this_family_alone(folder: Path, tmp_path: Path) -> None:
    run = VLMRun(config(folder, tmp_path, rounds=3))
    told = dict(run.plan(run.head(), 1).lines)
    assert told["rounds"].startswith("3 of so many steps")
    with pytest.raises(ConfigError, match=r"training.rounds is for family: vlm"):
        config_of(folder, family="image", vlm=None, training={"rounds": 2})
