"""Two processes (gloo, CPU), with copies or with shares of a vision-language model, train it as one does.

Unusable rows, missing branches, and rows of words alone beside rows with pictures are among the data.
"""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from mmalign.training.run import train
from mmalign.training.strategy import shard_task
from tests.training.two_processes import on_two
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import LORA, config_of, pairs, write_rows

OBJECTIVE = [{"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "rejected": "chosen@crop", "beta": 0.1}]
STRATEGIES = ("ddp", "fsdp")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"model": {"lora": LORA}, "training": {"gradient_checkpointing": True}},
    "all weights, encoder too": {"model": {"lora": None}, "vlm": {"freeze": "none"}},
}


def run(folder: Path, out: Path, kind: str, split: dict[str, int]) -> list[dict[str, Any]]:
    given = KINDS[kind]
    training = {"steps": 2, "learning_rate": 1e-3, "checkpoint_every": 2, **split, **given.get("training", {})}
    sections = {**given, "training": training, "objective": OBJECTIVE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.training.run.write_report", lambda folder: folder)
        patch.setattr("mmalign.training.trainer.shard_task", sharded)
        train(config_of(folder, output=str(out / kind), data={"max_corrupt": 0.5}, **sections))
    return [json.loads(line) for line in (out / kind / "log.jsonl").open()]


def sharded(task: Any, config: Any, accelerator: Any) -> None:
    """As the trainer's own, with a look at what came of it."""
    shard_task(task, config, accelerator)
    modules = [task.policy, *([task.reference.module] if hasattr(task.reference, "module") else [])]
    parameters = [value for module in modules for value in module.parameters()]
    assert all(isinstance(value, DTensor) for value in parameters)
    held = sum(value.to_local().numel() for value in parameters)
    assert held <= 0.6 * sum(value.numel() for value in parameters)


def every(folder: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    split = {"batch_size": 1, "accumulation": 2}
    return {
        f"{strategy} {kind}": run(folder, out / strategy, kind, {**split, "strategy": strategy})
        for strategy in STRATEGIES
        for kind in KINDS
    }


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    save_tiny_vlm(tmp_path / "model")
    rows = pairs()
    rows[5] = replace(rows[5], chosen="A <image> of a cat.")  # cannot be used, which turns out when it is visited
    write_rows(tmp_path, rows)
    first, second = on_two(functools.partial(every, tmp_path, tmp_path / "two"))
    assert first == second
    for kind in KINDS:
        one = run(tmp_path, tmp_path / "one", kind, {"batch_size": 4})
        file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
        expected = load_file(tmp_path / "one" / kind / "aligned" / file)
        for strategy in STRATEGIES:
            lines = first[f"{strategy} {kind}"]
            for line, of_one in zip(lines, one, strict=True):
                assert line["loss"] == pytest.approx(of_one["loss"], abs=2e-5)
                assert line.get("unusable_rows") == of_one.get("unusable_rows")
            assert lines[0]["loss"] == pytest.approx(2 * math.log(2), abs=1e-5)
            assert lines[-1]["unusable_rows"] == 1
            weights = load_file(tmp_path / "two" / strategy / kind / "aligned" / file)
            assert weights.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=5e-3, msg=name)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    before = plain(input_ids=torch.arange(10, 20)[None]).logits
    plain.load_adapter(tmp_path / "two" / "fsdp" / "lora" / "aligned")
    assert (plain.eval()(input_ids=torch.arange(10, 20)[None]).logits - before).abs().max() > 1e-4
