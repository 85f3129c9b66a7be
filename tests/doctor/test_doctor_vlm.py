"""``mmalign doctor`` on vision-language recipes: what it counts, what it warns of, and that it can be wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.adapters import VLMAdapter
from mmalign.adapters.vlm_layout import Layout
from mmalign.cli.__main__ import main
from mmalign.doctor import Finding, Level, examine
from mmalign.doctor.vlm import beta_findings_of_tokens, vlm_law_findings
from mmalign.doctor.vlm_memory import predict_vlm_memory
from mmalign.doctor.vlm_rows import bias_findings, some_items, token_findings
from mmalign.losses import Objective
from mmalign.models.vlm import vlm_without_weights
from mmalign.references import LoRAOffReference
from mmalign.training.config import Config
from mmalign.training.task import TRAIN
from mmalign.training.vlm_data import VLMData
from mmalign.training.vlms import rows_of
from mmalign.types import Message, VLMPair
from mmalign.vlm_data import table_of
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import config_of, pairs, write_rows

MDPO = [{"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "rejected": "chosen@crop", "beta": 0.1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    save_tiny_vlm(made / "qwen", "qwen2_5_vl")
    write_rows(made)
    return made


def looked_at(config: Config, given: list[VLMPair]) -> tuple[Any, Any, list[Any]]:
    """Components without weights, the run's rows, and some of them as tokens."""
    components = vlm_without_weights(config.model)
    data = VLMData({TRAIN: table_of(given)}, "rows")
    rows = rows_of(config, data, components, VLMAdapter(), Objective(config.objective))
    return components, rows, some_items(rows)


def found_in(config: Config, given: list[VLMPair]) -> list[Finding]:
    _, rows, items = looked_at(config, given)
    return [*token_findings(config, rows, items), *bias_findings(config, rows, items)]


def about(found: list[Finding], name: str) -> Finding:
    [one] = [finding for finding in found if finding.about == name]
    return one


@pytest.mark.parametrize("model", ["model", "qwen"])
def test_a_recipe_is_examined_to_the_end_and_nothing_is_written(folder: Path, tmp_path: Path, model: str) -> None:
    kept = {"kind": "cached", "path": str(tmp_path / "kept")}
    given: dict[str, Any] = {"model": {"name": str(folder / model)}, "objective": MDPO, "reference": kept}
    found = list(examine(config_of(folder, output=str(tmp_path / "run"), **given)))
    assert [finding for finding in found if finding.level is Level.error] == []
    names = ["model", "data", "prompts", "responses", "lengths", "shared tokens", "objective.1 (dpo)", "schedule"]
    assert {*names, "memory", "reference", "step 0", "packing"} <= {finding.about for finding in found}
    told = " ".join(finding.text for finding in found)
    assert "every log-ratio is 0" in told
    assert "two rows together score as they do alone" in told
    assert "responses behind one copy of the prompt score as behind their own" in told
    assert "for the scores of 2 micro-batches of 2 (chosen, rejected, chosen@crop)" in told
    assert list(tmp_path.iterdir()) == []


def test_what_is_cut_or_cannot_be_used_is_counted(folder: Path) -> None:
    config = config_of(folder, vlm={"max_length": 60})
    rows = pairs()
    assert about(found_in(config, rows[3:]), "responses").level is Level.ok
    rows[3] = replace(rows[3], chosen="word " * 20)
    rows[4] = replace(rows[4], prompt=(Message("user", (*rows[4].prompt[0].content, "why " * 20)),))
    rows[5] = replace(rows[5], chosen="An <image>.")
    found = found_in(config, rows[3:])
    cut = about(found, "responses")
    assert (cut.level, cut.change) == (Level.warning, "vlm.max_length=120")
    assert "17% of the responses are cut" in cut.text  # one of six: two rows of five are of no use
    assert "row-3" in cut.text
    bad = about(found, "rows")
    assert "2 of 5 rows looked at cannot be used" in bad.text
    assert "row-4 (the prompt has" in bad.text
    assert "row-5 (the response holds the token" in bad.text
    levels = [finding.level for finding in found_in(config, [rows[5]]) if finding.about == "rows"]
    assert levels == [Level.warning, Level.error]  # and none is left


def test_what_needs_no_look_at_the_picture_is_warned_of(folder: Path) -> None:
    config = config_of(folder)
    balanced = [
        replace(
            row,
            chosen="A cat." if number % 2 else "A black dog.",
            rejected="A small dog!" if number % 2 else "A red cat.",
        )
        for number, row in enumerate(pairs()[3:])
    ]
    found = found_in(config, balanced)
    assert {finding.level for finding in found} <= {Level.ok, Level.note}
    longer = [replace(row, chosen="Yes, it is so.", rejected="No.") for row in pairs()]
    found = found_in(config, longer)
    lengths = about(found, "lengths")
    assert (lengths.level, lengths.change) == (Level.warning, "objective.0.score=mean")
    assert "14.0 tokens chosen, 3.0 rejected" in lengths.text
    assert "longer in 100%" in lengths.text
    words = [finding.text for finding in found if finding.about == "labels"]
    assert words[0].startswith('"yes" begins 100% of the chosen responses and 0% of the rejected ones')
    assert len(words) == 2
    alike = [replace(pairs()[3], chosen="the cat is red", rejected="the cat is sad")]
    shared = about(found_in(config, alike), "shared tokens")
    assert shared.level is Level.note
    assert "86% of the tokens are in both" in shared.text  # twice "the cat is " and "d", of twice 14 characters
    assert "begin alike for 79% of the shorter one" in shared.text
    no_pictures = [replace(pairs()[2], sample_id="a")]
    assert about(found_in(config, no_pictures), "pictures").level is Level.warning


def other_reference(patch: pytest.MonkeyPatch) -> None:
    original = LoRAOffReference.__init__

    def spoilt(self: Any, module: torch.nn.Module, *given: Any, **named: Any) -> None:
        original(self, module, *given, **named)
        for name, value in module.named_parameters():
            if "lora_B" in name:
                value.data.add_(0.1)

    patch.setattr(LoRAOffReference, "__init__", spoilt)


def responses_that_see_each_other(patch: pytest.MonkeyPatch) -> None:
    def causal(self: Layout) -> torch.Tensor:
        rows, length = self.group.shape
        return torch.ones(rows, 1, length, length, dtype=torch.bool, device=self.group.device).tril()

    patch.setattr(Layout, "visible", causal)


@pytest.mark.parametrize(
    ("spoil", "name", "level", "text"),
    [
        (other_reference, "step 0", Level.error, "policy and reference differ before any training"),
        (responses_that_see_each_other, "packing", Level.warning, "packed rows score differently from unpacked ones"),
    ],
)
def test_laws_that_do_not_hold_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], name: str, level: Level, text: str
) -> None:
    spoil(monkeypatch)
    config = config_of(folder)
    found = list(vlm_law_findings(config, VLMData({TRAIN: table_of(pairs())}, "rows")))
    assert [finding.level for finding in found if finding.about == name and text in finding.text] == [level]


def test_memory_moves_with_the_settings(folder: Path) -> None:
    def predicted(**sections: Any) -> Any:
        config = config_of(folder, **sections)
        components, rows, items = looked_at(config, pairs())
        return predict_vlm_memory(config, components, rows, items)

    lora, full = predicted(), predicted(model={"lora": None})
    parameters = lora.weights // 4 - 448
    assert lora.optimizer == 8 * 448
    assert (lora.reference, full.reference) == (0, full.weights)
    assert full.weights == 4 * parameters
    assert full.gradients < full.weights  # the vision tower is frozen
    twice = predicted(training={"steps": 1, "batch_size": 4, "learning_rate": 1e-3})
    assert twice.activations == pytest.approx(2 * lora.activations, rel=0.1)
    saving = predicted(training={"steps": 1, "batch_size": 2, "learning_rate": 1e-3, "gradient_checkpointing": True})
    assert saving.activations < 0.7 * lora.activations


@pytest.mark.parametrize(
    ("term", "level"),
    [
        ({"beta": 0.1}, Level.note),
        ({"beta": 5000.0}, Level.warning),  # copied from a recipe of an image generator
        ({"beta": 0.1, "score": "mean"}, Level.warning),  # a mean hardly moves it
        ({"beta": 2.0, "score": "mean"}, Level.note),
    ],
)
def test_betas_of_responses(term: dict[str, Any], level: Level) -> None:
    [found] = beta_findings_of_tokens([{"loss": "dpo", **term}], tokens=50.0)
    assert found.level is level
    assert (found.change == "objective.0.beta=0.1") == (level is Level.warning and "score" not in term)


def test_families_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "playground/reward_bt", "data.path=tests"]) == 2
    assert "family" in capsys.readouterr().err
