"""One run of a vision-language model: what ``training.run`` asks of a family."""

import math
from pathlib import Path

import torch

from mmalign.models.lora import full_weights_of
from mmalign.models.vlm import freeze_parts, lora_layers_of, vlm_skeleton
from mmalign.models.vlm_names import peek_vlm
from mmalign.training.config import Config
from mmalign.training.image_reference import reference_kind
from mmalign.training.plan import REFERENCES, Plan, reference_scores_line
from mmalign.training.processes import processes_started
from mmalign.training.strategy import strategy_in_effect
from mmalign.training.task import HELD_OUT, TRAIN
from mmalign.training.vlm_branches import checked_vlm_objective
from mmalign.training.vlm_data import VLMData, open_vlm_data
from mmalign.training.vlms import VLMTask


class VLMRun:
    """``config`` checked: strategy, objective, branches, family of the model, layers of the LoRA; without weights."""

    def __init__(self, config: Config) -> None:
        assert config.vlm is not None
        if strategy_in_effect(config.training.strategy, processes_started()) == "deepspeed":
            raise ValueError(
                "this was started for deepspeed, which was not tried with family: vlm; start it with accelerate launch "
                "--config_file fsdp2.yaml (mmalign recipes copy accelerate/fsdp2)"
            )
        self.config, self.vlm = config, config.vlm
        self.objective = checked_vlm_objective(config)
        self.info = peek_vlm(config.model)
        self.trained, self.parameters = self._count()

    def head(self) -> VLMData:
        """Rows whose pictures were not looked at."""
        return open_vlm_data(self.config, self.objective, head=True)

    def open(self) -> VLMData:
        """Rows whose pictures were decoded as ``data.verify`` says."""
        return open_vlm_data(self.config, self.objective, record=Path(self.config.output))

    def plan(self, data: VLMData, processes: int) -> Plan:
        """The table of ``--dry-run``."""
        config, training = self.config, self.config.training
        rows = data.size(TRAIN)
        batch = training.batch_size * training.accumulation * processes
        contexts = {branch.partition("@")[2] for branch in self.objective.branches}
        per_step = f"{training.batch_size} x {training.accumulation} accumulated x {processes} processes"
        return Plan(
            (
                (
                    "model",
                    f"{config.model.name} ({self.info.model_type}), {'LoRA' if config.model.lora else 'weights'}",
                ),
                ("trained parameters", f"{self.trained:,} of {self.parameters:,} (vlm.freeze: {self.vlm.freeze})"),
                ("reference", REFERENCES[reference_kind(config, self.objective)]),
                ("data", data.report),
                ("rows", f"{rows:,} to train on, {data.size(HELD_OUT):,} held out"),
                ("global batch", f"{batch} = {per_step}"),
                (
                    "steps",
                    f"{training.steps:,}, {training.steps * batch / rows:.2f} epochs of {math.ceil(rows / batch)}",
                ),
                *([("rounds", _rounds(training.rounds))] if training.rounds > 1 else []),
                *(
                    (f"objective.{index}", ", ".join(f"{key}: {value}" for key, value in term.items()))
                    for index, term in enumerate(config.objective)
                ),
                ("branches", f"{', '.join(self.objective.branches)}: {len(contexts)} sets of pictures per row"),
                ("packing", f"{self.vlm.pack}, at most {self.vlm.max_length:,} tokens of prompt and response"),
                *reference_scores_line(config, data.size(HELD_OUT), self.objective.branches, processes),
                ("output", config.output),
            )
        )

    def task(self, data: VLMData) -> VLMTask:
        """The model, ready to be trained."""
        return VLMTask.from_config(self.config, data)

    def _count(self) -> tuple[int, int]:
        """(trained, all) parameters; ValueError for LoRA targets that match nothing."""
        model, lora, parts = vlm_skeleton(self.info), self.config.model.lora, self.info.parts
        parameters = sum(value.numel() for value in model.parameters())
        if lora is None:
            freeze_parts(model, self.vlm.freeze, parts)
            return sum(value.numel() for value in model.parameters() if value.requires_grad), parameters
        adapted = lora_layers_of(model, lora, self.vlm.freeze, parts)
        trained = sum(value.numel() for value in full_weights_of(model, adapted).values())
        for name in adapted.targets:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            trained += lora.rank * (weight.shape[0] + weight[0].numel())
        return trained, parameters


def _rounds(number: int) -> str:
    return f"{number} of so many steps, each on the merged model of the one before, which is its reference"
