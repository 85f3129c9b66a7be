"""Every recipe of a vision-language model takes two steps on a tiny one of its class; plain PEFT loads the result."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from mmalign.losses import Objective
from mmalign.training.config import Config
from mmalign.training.loading import load_config
from mmalign.training.log import Log
from mmalign.training.recipe_files import recipe_names
from mmalign.training.run import train
from mmalign.types import Message, Video, VideoPart, VLMPair
from mmalign.vlm_data import table_of, write_trl, write_vlm_canonical
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import pairs, picture

RECIPES = [name for name in recipe_names() if load_config(name, check_files=False).family == "vlm"]
# The class of a recipe's model; a recipe of a new model adds its line.
MODELS = {
    "playground/tiny-llava": "llava",
    "llava-hf/llava-1.5-7b-hf": "llava",
    "llava-hf/llava-v1.6-vicuna-7b-hf": "llava_next",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
}


def rows() -> list[VLMPair]:
    """Six pairs about one picture each, with another one beside it."""
    found = [row for row in pairs(8) if len(row.images) == 1]
    return [
        replace(row, branch_images={"retrieved": (picture(200 + index),)}, extras={"gold": f"Gold {index}."})
        for index, row in enumerate(found)
    ]


def films() -> list[VLMPair]:
    """The same about a video of two frames each."""
    shown = (Message("user", (VideoPart(0), "What happens?")),)
    return [
        replace(
            row,
            prompt=shown,
            images=(),
            branch_images={},
            videos=(Video(f"film {index}", frames=(picture(index), picture(50 + index)), fps=2.0),),
        )
        for index, row in enumerate(rows())
    ]


def rlaif_v(path: Path) -> Path:
    plain = [
        {"image": {"bytes": row.images[0].read()}, "question": "What?", "chosen": row.chosen, "rejected": row.rejected}
        for row in rows()
    ]
    pq.write_table(pa.Table.from_pylist(plain), path)
    return path


def trl(path: Path) -> Path:
    return write_trl(table_of([replace(row, branch_images={}, extras={}) for row in rows()]), path)[0]


WRITERS: dict[str, Callable[[Path], Path]] = {"rlaif_v": rlaif_v, "trl": trl}


def shrunk(name: str, folder: Path) -> Config:
    """The recipe on a tiny model and six pictures; objective, LoRA, reference and ``vlm`` stay.

    Sources that the tests of the readers cover are replaced by the canonical one, which holds the same rows.
    """
    recipe = load_config(name, check_files=False)
    save_tiny_vlm(folder / "model", MODELS[recipe.model.name])
    path = folder / "rows.parquet"
    source = recipe.data.source if recipe.data.source in WRITERS else "vlm_canonical"
    if source in WRITERS:
        WRITERS[source](path)
    else:
        asks_for_films = recipe.vlm is not None and recipe.vlm.frames is not None
        write_vlm_canonical(table_of(films() if asks_for_films else rows()), path)
    overrides = {
        "model.name": folder / "model",
        "model.dtype": "float32",
        "data.source": source,
        "data.path": path,
        "training.steps": 2,
        "training.batch_size": 2,
        "training.accumulation": 1,
        "training.warmup_steps": 0,
        "training.rounds": 1,  # tests/vlm/test_vlm_rounds.py has several
        "training.mixed_precision": "no",
        "training.optimizer": "adamw",
        "training.workers": 0,
        "output": folder / "run",
    }
    if recipe.data.held_out:
        overrides |= {"data.held_out": 0.3, "evaluation.every": 1}
    return load_config(name, [f"{key}={value}" for key, value in overrides.items()])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_vlm_recipe_takes_two_steps_and_exports(name: str, tmp_path: Path) -> None:
    config = shrunk(name, tmp_path)
    result = train(config)
    log = Log(None)
    log.rewind(result.folder / "log.jsonl", step=2)
    assert [line["step"] for line in log.training] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in log.training)
    sigmoids = sum(
        term.coefficient * (2 if term.loss_name == "bco_pair" else 1)
        for term in Objective(config.objective).terms
        if term.loss_name != "sft"
    )
    first = log.training[0]
    nll = first["loss"] - sigmoids * math.log(2)
    if "v_dpo" in str(config.objective):  # the guided policy is not the reference, not even at the first step
        assert abs(nll) > 1e-3
    else:
        assert nll == pytest.approx(0, abs=1e-6) or (nll > 0 and "sft" in str(config.objective))
    assert result.report is not None
    assert result.report.is_file()
    aligned = result.folder / "aligned"
    assert (aligned / "README.md").is_file()
    base = AutoModelForImageTextToText.from_pretrained(config.model.name)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    if config.model.lora:
        merged = PeftModel.from_pretrained(base, str(aligned)).merge_and_unload().state_dict()
    else:
        merged = AutoModelForImageTextToText.from_pretrained(aligned).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(merged[name], value)}
    assert any("language_model" in name for name in moved)
    assert any("vision_tower" in name for name in moved) == (name == "llava/mpo")


def test_published_hyper_parameters_of_vlms() -> None:
    """RLAIF-V's llava15_train_lora.sh (8 GPUs), mDPO's bunny/config.yaml, Re-Align's script (4), InternVL's, TRL's."""
    configs = {name: load_config(name, check_files=False) for name in RECIPES}
    published = {name for name in RECIPES if not name.startswith("playground/")}
    assert published == {
        *(f"llava/{name}" for name in ("dpo_lora", "mdpo", "rdpo", "mpo", "chip", "v_dpo", "visual", "ln_dpo")),
        *(f"llava/{name}" for name in ("rlhf_v", "bdhs", "mia_dpo")),
        *(f"qwen/{name}" for name in ("dpo_lora", "dpo", "mrdpo")),
    }
    for name, rate, batch, processes in (
        ("llava/dpo_lora", 1e-5, 8, 8),
        ("llava/mdpo", 1e-5, 32, 1),
        ("llava/rdpo", 1e-6, 32, 4),
        ("llava/mpo", 1e-6, 256, 8),
        ("llava/chip", 5e-7, 32, 4),
        ("llava/v_dpo", 1e-6, 64, 2),
        ("llava/mia_dpo", 5e-5, 64, 8),
        ("llava/bdhs", 5e-6, 32, 1),
        ("qwen/dpo_lora", 1e-6, 64, 1),
        ("qwen/dpo", 1e-6, 64, 1),
    ):
        training = configs[name].training
        assert training.learning_rate == pytest.approx(rate)
        assert training.batch_size * training.accumulation * processes == batch
        assert all(term["beta"] == 0.1 for term in configs[name].objective if term["loss"] != "sft")
    chip, mrdpo = configs["llava/chip"], configs["qwen/mrdpo"]
    assert chip.vlm is not None
    assert (chip.objective[0]["token_weight"], chip.vlm.changed_weight, chip.vlm.corruptions) == (
        0.1,
        4,
        {"noise": {"step": 500}},
    )
    assert mrdpo.model.lora is not None
    assert (mrdpo.model.lora.rank, mrdpo.model.lora.alpha, mrdpo.training.steps) == (128, 256, 1000)
    assert mrdpo.objective[1] == {"loss": "sft", "chosen": "gold", "coefficient": 0.1}
    assert [term.get("coefficient", 1) for term in configs["llava/mpo"].objective] == [0.8, 0.2, 1.0]
    assert [term["rejected"] for term in configs["llava/mdpo"].objective[:2]] == ["rejected", "chosen@crop"]
