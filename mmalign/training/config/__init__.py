"""The configuration schema: the only source of defaults, validated as a whole before anything heavy is imported.

A file is YAML with the top-level keys of :class:`Config`; ``key.path=value`` overrides are applied on top, with list
items addressed by index (``objective.0.beta=3``). Every mistake is reported at once, with its path, the value given
and what is allowed. This module must stay light: importing it must not import torch or diffusers.
"""

from typing import Any

from pydantic import Field, field_validator, model_validator

from mmalign.training.config.cached import cache_problems
from mmalign.training.config.data import BucketsConfig, DataConfig
from mmalign.training.config.evaluation import EarlyStopConfig, EvaluationConfig, PicturesConfig
from mmalign.training.config.loaded import loading_problems
from mmalign.training.config.loop import EMAConfig, TimestepConfig, TrainingConfig
from mmalign.training.config.model import LoRAConfig, ModelConfig
from mmalign.training.config.reference import ReferenceConfig
from mmalign.training.config.reward import HEAD_SETTINGS, HeadConfig, RewardConfig, reward_problems
from mmalign.training.config.section import Section
from mmalign.training.config.stabilisers import CurriculumConfig, GuardConfig, SafeguardConfig, stabiliser_problems
from mmalign.training.config.trained import precision_problems, reference_problems
from mmalign.training.config.vlm import Family, VLMConfig, family_problems

__all__ = [
    "HEAD_SETTINGS",
    "BucketsConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "EMAConfig",
    "EarlyStopConfig",
    "EvaluationConfig",
    "GuardConfig",
    "HeadConfig",
    "LoRAConfig",
    "ModelConfig",
    "PicturesConfig",
    "ReferenceConfig",
    "RewardConfig",
    "SafeguardConfig",
    "Section",
    "TimestepConfig",
    "TrainingConfig",
    "VLMConfig",
]


class Config(Section):
    """One run. ``family``: image generators, vision-language models (section ``vlm``), reward models (``reward``)."""

    family: Family = "image"
    model: ModelConfig
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    data: DataConfig
    objective: list[dict[str, Any]] = Field(..., min_length=1)
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    vlm: VLMConfig | None = Field(default_factory=lambda given: VLMConfig() if given.get("family") == "vlm" else None)
    reward: RewardConfig | None = Field(
        default_factory=lambda given: RewardConfig() if given.get("family") == "reward" else None
    )
    output: str

    @field_validator("objective")
    @classmethod
    def _every_term_names_its_loss(cls, terms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        missing = [str(index) for index, term in enumerate(terms) if "loss" not in term]
        if missing:
            raise ValueError(f"term {', '.join(missing)} has no 'loss' key")
        return terms

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> "Config":
        problems = []
        evaluation, data = self.evaluation, self.data
        if evaluation.early_stop and not evaluation.every:
            problems.append("evaluation.early_stop needs evaluation.every")
        if evaluation.every and not data.held_out:
            problems.append("evaluation.every needs data.held_out > 0")
        if data.held_out and not evaluation.every:
            problems.append("data.held_out > 0 needs evaluation.every; otherwise those rows would be lost")
        problems += reference_problems(self.reference, self.model, self.training.steps)
        problems += precision_problems(self.model, self.training.mixed_precision)
        problems += loading_problems(self.model, data)
        problems += cache_problems(data)
        if self.training.schedule == "constant" and self.training.warmup_steps >= self.training.steps:
            problems.append("training.warmup_steps must be smaller than training.steps")
        training = self.training
        problems += stabiliser_problems(training.steps, training.curriculum, training.guard, evaluation)
        sections = {"model": self.model, "data": data, "training": training, "evaluation": evaluation}
        if training.rounds > 1 and self.family != "vlm":
            problems.append("training.rounds is for family: vlm; leave it out")
        problems += family_problems(self.family, self.vlm, sections)
        problems += reward_problems(self.family, self.reward, sections)
        if problems:
            raise ValueError("\n".join(problems))
        return self
