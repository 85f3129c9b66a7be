"""References through the task and the trainer: exact at step 0, true to the SFT policy, exact after a resume."""

import io
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import random_batch, seeded
from data.making_data import FIXTURE
from diffusers import DiffusionPipeline
from models.lora_cases import ADAPTERS, pictures, train_two_steps
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_models import tiny_sd15

from mmalign.losses import Objective
from mmalign.models import load_aligned, load_components, make_trainable, save_aligned
from mmalign.models.lora_weights import active_adapters
from mmalign.references import (
    AdapterReference,
    CachedReference,
    FrozenReference,
    LoRAOffReference,
    RefreshedReference,
)
from mmalign.training.cache_run import build_cache
from mmalign.training.config import Config, LoRAConfig
from mmalign.training.image_data import ImageData, open_data
from mmalign.training.images import ImageTask
from mmalign.training.plan import shape_of_model
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.trainer import Trainer

CPU = torch.device("cpu")
SFT = {"rank": 3, "alpha": 6.0, "targets": ["to_q", "conv1"]}
FRESH = {"rank": 2, "alpha": 8.0, "targets": ["to_q", "to_v"]}
SNAPSHOT, EMA = {"kind": "snapshot", "every": 3}, {"kind": "ema", "decay": 0.5}
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5 in ``base``, and a LoRA and a DoRA for it as an SFT run leaves them, in ``sft`` and ``dora``."""
    folder = tmp_path_factory.mktemp("model")
    tiny_sd15(folder / "base")
    for name, lora in (("sft", LoRAConfig(**SFT)), ("dora", LoRAConfig(**SFT, dora=True))):
        components = load_components(str(folder / "base"))
        torch.manual_seed(0)
        make_trainable(components.denoiser, lora)
        train_two_steps(components.denoiser, "sd15")
        save_aligned(components, folder / name, lora)
    return folder


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make_config(model: Path, tmp_path: Path) -> MakeConfig:
    def make(reference: Any = "auto", *, beta: float = 2000.0, **sections: Any) -> Config:
        training = {"steps": 5, "batch_size": 2, "learning_rate": 1e-3} | sections.pop("training", {})
        data = {"source": "pickapic", "path": str(FIXTURE), "resolution": 32} | sections.pop("data", {})
        raw = {
            "model": {"name": str(model / "base"), **sections.pop("model", {})},
            "reference": reference,
            "data": data,
            "objective": [{"loss": "dpo", "beta": beta}],
            "training": training,
            "output": str(tmp_path / "run"),
        }
        return Config.model_validate(raw | sections)

    return make


OPENED: dict[str, ImageData] = {}


def new_task(config: Config) -> ImageTask:
    """The task on rows that were opened once, whatever the model."""
    section = config.data.model_dump_json()
    if section not in OPENED:
        OPENED[section] = open_data(config, Objective(config.objective))
    return ImageTask.from_config(config, OPENED[section])


def task_of(config: Config) -> ImageTask:
    task = new_task(config)
    task.prepare(CPU)
    return task


def scores_of(task: ImageTask, mixed_precision: str = "no") -> Any:
    batch = task.collate([task.load(RowKey(TRAIN, index, 100 + index)) for index in range(2)]).to(CPU)
    # One context for one call: autocast keeps cast weights until it ends.
    with torch.autocast("cpu", dtype=torch.bfloat16) if mixed_precision == "bf16" else nullcontext():
        return task.score(task.policy.train(), batch)


# --- exactly zero at step 0

CASES: dict[str, tuple[dict[str, Any], Any, type]] = {
    "dora": ({"lora": {**FRESH, "dora": True, "targets": ["to_q", "conv1"]}}, "auto", AdapterReference),
    "rslora": ({"lora": {**FRESH, "rslora": True}}, "auto", LoRAOffReference),
    "train_also": ({"lora": {**FRESH, "train_also": ["conv_in", "norm2"]}}, "auto", FrozenReference),
    "train_also_off": ({"lora": {**FRESH, "train_also": ["conv_in", "norm2"]}}, "lora_off", LoRAOffReference),
    "on_sft": ({"lora": FRESH, "adapter": "sft"}, "auto", LoRAOffReference),
    "on_sft_frozen": ({"lora": FRESH, "adapter": "sft"}, "frozen", FrozenReference),
    "sft_itself": ({"lora": SFT, "adapter": "sft"}, "adapter", AdapterReference),
    "dora_itself": ({"lora": {**SFT, "dora": True}, "adapter": "dora"}, "adapter", AdapterReference),
    "full_from_sft": ({"adapter": "sft"}, "auto", FrozenReference),
    "full_from_dora": ({"adapter": "dora"}, "auto", FrozenReference),
    "snapshot": ({"lora": FRESH}, SNAPSHOT, RefreshedReference),
    "snapshot_on_sft": ({"lora": FRESH, "adapter": "sft"}, SNAPSHOT, RefreshedReference),
    "ema_full": ({}, EMA, RefreshedReference),
    "ema_train_also": ({"lora": {**FRESH, "train_also": ["conv_in"]}}, EMA, RefreshedReference),
}


def placed(model: Path, section: dict[str, Any]) -> dict[str, Any]:
    return section | ({"adapter": str(model / section["adapter"])} if "adapter" in section else {})


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        *((case, "bf16_weights") for case in CASES),
        *(
            (case, precision)
            for case in ("dora", "on_sft", "full_from_dora")
            for precision in ("float32", "bf16_autocast")
        ),
    ],
)
def test_log_ratios_are_exactly_zero(make_config: MakeConfig, model: Path, case: str, precision: str) -> None:
    section, reference, expected = CASES[case]
    if precision == "bf16_weights":
        section = section | {"dtype": "bfloat16"}
    mixed = "bf16" if precision == "bf16_autocast" or "train_also" in case else "no"
    config = make_config(reference, model=placed(model, section), training={"mixed_precision": mixed})
    task = task_of(config)
    assert isinstance(task.reference, expected)
    scores = scores_of(task, mixed)
    assert scores.chosen_logratio.count_nonzero() == scores.rejected_logratio.count_nonzero() == 0
    trained = [parameter for parameter in task.policy.parameters() if parameter.requires_grad]
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded()))
    moved = scores_of(task, mixed)
    assert (moved.chosen_logratio != 0).all()
    assert torch.equal(moved.ref_chosen_logp, scores.ref_chosen_logp)


def test_the_plan_knows_what_is_trained(make_config: MakeConfig, model: Path) -> None:
    for section in ({"lora": {**FRESH, "dora": True, "train_also": ["conv_in"]}}, {"lora": SFT, "adapter": "sft"}):
        reference = "adapter" if "adapter" in section else "auto"
        config = make_config(reference, model=placed(model, section))
        trained = sum(value.numel() for value in task_of(config).policy.parameters() if value.requires_grad)
        assert shape_of_model(config).trained == trained


# --- the SFT policy, and what is exported


def sft_scores(model: Path, name: str, task: ImageTask) -> torch.Tensor:
    """Scores of the base model with the SFT LoRA, as diffusers loads it, on the task's rows."""
    pipe = DiffusionPipeline.from_pretrained(model / "base")
    pipe.load_lora_weights(str(model / name))
    reference, task.reference = task.reference, FrozenReference(pipe.unet)
    try:
        return scores_of(task).ref_chosen_logp
    finally:
        task.reference = reference


@pytest.mark.parametrize("case", ["on_sft", "sft_itself", "dora_itself", "full_from_sft", "full_from_dora"])
def test_reference_and_export_are_those_of_the_original_base(
    make_config: MakeConfig, model: Path, tmp_path: Path, case: str
) -> None:
    section, reference, _ = CASES[case]
    task = task_of(make_config(reference, model=placed(model, section)))
    theirs = sft_scores(model, section["adapter"], task)
    torch.testing.assert_close(scores_of(task).ref_chosen_logp, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores_of(task).chosen_logp, theirs, rtol=1e-5, atol=1e-6)
    train_two_steps(task.policy, "sd15")
    task.export(task.policy, tmp_path / "aligned", {})
    if case.startswith("full"):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "aligned")
    else:
        pipe = DiffusionPipeline.from_pretrained(model / "base")
        pipe.load_lora_weights(str(tmp_path / "aligned"))
    score = ADAPTERS["sd15"]().score
    ours, exported = (
        score(unet.eval(), None, random_batch("sd15"), generator=seeded()).chosen_logp
        for unet in (task.policy, pipe.unet)
    )
    torch.testing.assert_close(exported, ours, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(
        score(load_aligned(str(model / "base")).unet, None, random_batch("sd15"), generator=seeded()).chosen_logp,
        ours,
        rtol=1e-2,
    )


def test_ranks_add_up_in_an_export_on_an_sft_lora(make_config: MakeConfig, model: Path, tmp_path: Path) -> None:
    task = task_of(make_config(model={"adapter": str(model / "sft"), "lora": FRESH}))
    assert active_adapters(task.policy) == ["start", "default"]
    task.export(task.policy, tmp_path / "aligned", {})
    tensors = load_file(tmp_path / "aligned" / "pytorch_lora_weights.safetensors")
    ranks = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]: value.shape[0]
        for name, value in tensors.items()
        if "lora_A" in name
    }
    assert ranks == {"to_q": 3 + 2, "conv1": 3, "to_v": 2}


def test_modules_in_full_are_exported_and_loaded(make_config: MakeConfig, model: Path, tmp_path: Path) -> None:
    section = {"lora": {**FRESH, "train_also": ["conv_in", "mid_block.attentions.0.norm"]}}
    task = task_of(make_config(model=section))
    train_two_steps(task.policy, "sd15")
    task.export(task.policy, tmp_path / "aligned", {})
    stored = load_file(tmp_path / "aligned" / "trained_modules.safetensors")
    modules = ("conv_in", "mid_block.attentions.0.norm")
    assert stored.keys() == {f"{module}.{own}" for module in modules for own in ("weight", "bias")}
    expected = pictures(task.components.pipe)
    assert pictures(load_aligned(str(model / "base"), tmp_path / "aligned")) == expected
    pipe = DiffusionPipeline.from_pretrained(model / "base")
    pipe.unet.load_state_dict(stored, strict=False)
    pipe.load_lora_weights(str(tmp_path / "aligned"))
    assert pictures(pipe) == expected
    card = (tmp_path / "aligned" / "README.md").read_text()
    assert card.index("load_state_dict") < card.index("load_lora_weights")
    assert "trained_modules.safetensors" in card


# --- what cannot work is said before weights load


@pytest.mark.parametrize(
    ("section", "reference", "message"),
    [
        ({"lora": {**FRESH, "train_also": ["norm2"]}}, "adapter", "use auto, lora_off or frozen"),
        ({"lora": {**FRESH, "dora": True}}, "lora_off", r"not exactly the model that DoRA starts from"),
        ({}, "adapter", "needs model.lora"),
        ({"lora": {**FRESH, "dora": True}, "adapter": "x"}, "auto", "could not be exported as one LoRA"),
        ({"lora": {**FRESH, "train_also": ["norm2"]}, "dtype": "bfloat16"}, "auto", "mixed_precision=bf16"),
        ({}, "snapshot", "needs every, such as"),
        ({}, {"kind": "ema"}, "needs decay"),
        ({}, {"kind": "ema", "decay": 0.9, "every": 3}, r"every would be ignored by kind: ema.*kind: snapshot"),
        ({}, {"kind": "frozen", "path": "x"}, "path would be ignored by kind: frozen"),
        ({}, {"kind": "snapshot", "every": 5}, "would be ignored in 5 steps"),
    ],
)
def test_combinations_that_cannot_work(make_config: MakeConfig, section: dict, reference: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(reference, model=section)


@pytest.mark.parametrize(
    ("section", "reference", "message"),
    [
        (
            {"lora": FRESH, "adapter": "dora"},
            "auto",
            r"is a DoRA.*reference: adapter, or merge it first: mmalign export",
        ),
        ({"lora": FRESH, "adapter": "sft"}, "adapter", r"rank: 3, alpha: 6, dora: false, targets: \[conv1, to_q\]"),
        ({"lora": {**SFT, "rslora": True}, "adapter": "sft"}, "adapter", "describes another one"),
        ({"lora": {**SFT, "alpha": 5.0}, "adapter": "sft"}, "adapter", "describes another one"),
        ({"lora": {**FRESH, "train_also": ["mid_block.resnets.0"]}, "adapter": "sft"}, "auto", "adapts already"),
        ({"lora": {**FRESH, "train_also": ["attn1"]}}, "auto", r"both name .*attn1\.to_q"),
        ({"lora": {**FRESH, "train_also": ["nothing"]}}, "auto", r"nothing matches no module.*conv_in"),
    ],
)
def test_adapters_that_cannot_be_started_from(
    make_config: MakeConfig, model: Path, section: dict, reference: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shape_of_model(make_config(reference, model=placed(model, section)))


# --- resume


def fit(config: Config, folder: Path, *, resume: bool = False) -> ImageTask:
    task = new_task(config)
    Trainer(config, task, folder=folder, console=Console(file=io.StringIO())).fit(resume=resume)
    return task


@pytest.mark.parametrize("case", ["snapshot_on_sft", "ema_full", "sft_itself", "train_also_off"])
def test_a_resumed_run_has_the_reference_that_it_had(
    make_config: MakeConfig, model: Path, tmp_path: Path, case: str
) -> None:
    section, reference, _ = CASES[case]

    def config(steps: int) -> Config:
        training = {"steps": steps, "checkpoint_every": 2}
        return make_config(reference, model=placed(model, section), training=training, data={"cache": "memory"})

    whole = fit(config(5), tmp_path / "whole")
    fit(config(4), tmp_path / "run")
    resumed = fit(config(5), tmp_path / "run", resume=True)
    weights = whole.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.policy.state_dict().items())
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "run")
    ]
    assert losses[0] == losses[1]
    if case in ("snapshot_on_sft", "ema_full"):
        fresh = new_task(config(5)).reference
        assert isinstance(resumed.reference, RefreshedReference)
        before, after = fresh.state_dict(), resumed.reference.state_dict()  # type: ignore[union-attr]
        assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_another_adapter_at_the_same_place_is_refused_on_resume(
    make_config: MakeConfig, model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "lora.safetensors"
    tensors = load_file(model / "sft" / "pytorch_lora_weights.safetensors")
    save_file(tensors, place)

    def config(steps: int) -> Config:
        training = {"steps": steps, "checkpoint_every": 1}
        return make_config(model={"adapter": str(place), "lora": FRESH}, training=training)

    fit(config(1), tmp_path / "run")
    save_file({name: value * 1.01 for name, value in tensors.items()}, place)
    with pytest.raises(ValueError, match="the reference's weights are not those the run began with"):
        fit(config(2), tmp_path / "run", resume=True)


# --- kept scores


def test_another_beta_finds_every_score_and_learns_what_it_would(make_config: MakeConfig, tmp_path: Path) -> None:
    kept = {"kind": "cached", "path": str(tmp_path / "kept")}
    section = {"model": {"lora": FRESH}, "training": {"steps": 3}}
    first = fit(make_config(kept, **section), tmp_path / "first")
    assert isinstance(first.reference, CachedReference)
    assert (first.reference.hits, first.reference.misses) == (0, 3)
    second = fit(make_config(kept, beta=500.0, **section), tmp_path / "second")
    plain = fit(make_config("auto", beta=500.0, **section), tmp_path / "plain")
    assert isinstance(second.reference, CachedReference)
    assert (second.reference.hits, second.reference.misses) == (3, 0)
    weights = plain.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in second.policy.state_dict().items())
    assert not all(torch.equal(value, weights[name]) for name, value in first.policy.state_dict().items())


def test_scores_computed_ahead_are_those_of_the_live_reference(make_config: MakeConfig, tmp_path: Path) -> None:
    """``mmalign cache build`` with ``reference: cached``: training then runs the policy alone, held-out rows too."""
    section = {
        "model": {"lora": FRESH},
        "data": {"held_out": 0.3, "caption_dropout": 0.5},
        "evaluation": {"every": 2},
        "training": {"steps": 2, "accumulation": 2},
    }
    config = make_config({"kind": "cached", "path": str(tmp_path / "kept")}, **section)
    assert build_cache(config) == [tmp_path / "kept"]
    kept, live = fit(config, tmp_path / "kept-run"), fit(make_config("auto", **section), tmp_path / "live")
    assert isinstance(kept.reference, CachedReference)
    assert kept.reference.misses == 0
    assert kept.reference.hits >= 6
    weights = live.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in kept.policy.state_dict().items())
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("kept-run", "live")
    ]
    assert losses[0] == losses[1]


def test_kept_scores_of_other_pictures_or_noise_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    kept = {"kind": "cached", "path": str(tmp_path / "kept")}
    task_of(make_config(kept, model={"lora": FRESH}))
    task_of(make_config(kept, model={"lora": {**FRESH, "rank": 4}}, training={"learning_rate": 1.0, "seed": 3}))
    for changed, named in (
        ({"data": {"flip": True}}, "data.flip"),
        ({"data": {"max_rows": 4}}, "rows"),
        ({"training": {"mixed_precision": "bf16"}}, "training.mixed_precision"),
        ({"model": {"lora": FRESH, "dtype": "bfloat16"}}, "model.dtype"),
    ):
        with pytest.raises(ValueError, match=f"- {named}: "):
            task_of(make_config(kept, **({"model": {"lora": FRESH}} | changed)))
