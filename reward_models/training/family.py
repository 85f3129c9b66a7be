"""The family ``reward`` of ``mmalign train`` (entry-point group ``mmalign.families``)."""

import math
from pathlib import Path
from typing import Any

from mmalign.losses import Objective
from mmalign.losses.signatures import LossSignature, available_losses
from mmalign.training.config import Config
from mmalign.training.image_data import ImageData, open_data, open_head
from mmalign.training.mistakes import Mistake
from mmalign.training.plan import Plan
from mmalign.training.processes import processes_started
from mmalign.training.strategy import strategy_in_effect
from mmalign.training.task import HELD_OUT, TRAIN
from mmalign.types import CHOSEN, REJECTED
from reward_models.clip_folder import find_clip
from reward_models.training.scorer import make_trainable, skeleton
from reward_models.training.task import RewardTask

OFFERED = frozenset({"chosen_score", "rejected_score", "preference", "margin"})


def trainable_losses() -> list[str]:
    """Losses that a reward model can be trained with here: those that ask for nothing but what pairs offer."""
    return sorted(name for name, loss in available_losses().items() if set(LossSignature.of(loss).tensors) <= OFFERED)


def mistakes(config: Config, objective: Objective, *, check_files: bool) -> list[Mistake]:
    """Terms that need more than two scores, branches there are none of, and a model that is not there or no CLIP."""
    problem = objective_problem(objective)
    found = [Mistake("objective", problem)] if problem else []
    if not check_files:
        return found
    try:
        clip = find_clip(config.model.name, reward="model.name")
        _ = clip.config
    except ValueError as error:
        return [*found, Mistake("model.name", str(error), config.model.name)]
    try:
        assert config.reward is not None
        make_trainable(skeleton(clip), config.model.lora, config.reward)
    except ValueError as error:
        found.append(Mistake("model", str(error)))
    return found


def objective_problem(objective: Objective) -> str | None:
    """Why the objective cannot train a reward model on pairs; None where it can."""
    problems = []
    for index, term in enumerate(objective.terms):
        lacking = [name for name in term.signature.tensors if name not in OFFERED]
        if lacking:
            problems.append(f"objective.{index} ({term.loss_name}) asks for {', '.join(lacking)}")
        elif set(term.branches.values()) != {CHOSEN, REJECTED}:
            told = ", ".join(term.branches.values())
            problems.append(f"objective.{index} ({term.loss_name}) reads the branches {told}")
    if not problems:
        return None
    return (
        f"{'; '.join(problems)}. A reward model gives the scores of {CHOSEN} and {REJECTED}; choose from "
        f"{', '.join(trainable_losses())}"
    )


def run(config: Config) -> "RewardRun":
    """The run of ``config``."""
    return RewardRun(config)


class RewardRun:
    """``config`` checked: strategy, objective, model, what is trained of it; without weights."""

    def __init__(self, config: Config) -> None:
        assert config.reward is not None
        strategy = strategy_in_effect(config.training.strategy, processes_started())
        if strategy in ("fsdp", "deepspeed"):
            raise ValueError(
                f"this was started for {strategy}, which was not tried with family: reward; start it with "
                "accelerate launch --config_file ddp.yaml (mmalign recipes copy accelerate/ddp)"
            )
        self.config, self.objective = config, Objective(config.objective)
        problem = objective_problem(self.objective)
        if problem is not None:
            raise ValueError(problem)
        self.found = find_clip(config.model.name, reward="model.name")
        self.trained, self.parameters = make_trainable(skeleton(self.found), config.model.lora, config.reward)

    def head(self) -> ImageData:
        """Rows of which only the first is decoded."""
        return open_head(self.config, self.objective)

    def open(self) -> ImageData:
        """Rows whose pictures were decoded as ``data.verify`` says."""
        return open_data(self.config, self.objective, record=Path(self.config.output))

    def plan(self, data: ImageData, processes: int) -> Plan:
        """The table of ``--dry-run``."""
        config, training, rows = self.config, self.config.training, data.size(TRAIN)
        batch = training.batch_size * training.accumulation * processes
        per_step = f"{training.batch_size} x {training.accumulation} accumulated x {processes} processes"
        vision: Any = self.found.config.vision_config
        return Plan(
            (
                ("model", f"{config.model.name} (clip), {'LoRA' if config.model.lora else 'weights'}"),
                ("trained parameters", f"{self.trained:,} of {self.parameters:,}"),
                ("pictures", f"{vision.image_size} px, {config.reward.fit if config.reward else ''}"),
                ("data", data.report),
                ("rows", f"{rows:,} to train on, {data.size(HELD_OUT):,} held out"),
                ("global batch", f"{batch} = {per_step}"),
                (
                    "steps",
                    f"{training.steps:,}, {training.steps * batch / rows:.2f} epochs of {math.ceil(rows / batch)}",
                ),
                *(
                    (f"objective.{index}", ", ".join(f"{key}: {value}" for key, value in term.items()))
                    for index, term in enumerate(config.objective)
                ),
                ("output", config.output),
            )
        )

    def task(self, data: ImageData) -> RewardTask:
        """The model, ready to be trained."""
        return RewardTask(self.config, data, self.found, self.objective)
