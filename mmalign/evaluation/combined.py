"""``CombinedReward``: several reward models as one, built from a mapping (the contents of a YAML file).

name: quality
aggregate: sum                # sum, mean, min, lower_confidence
rewards:
  - {reward: pickscore, transform: log_sigmoid}
  - {reward: aesthetic, transform: log_sigmoid, weight: 0.5}
constraints:
  - {reward: clipscore, at_least: 0.75, rate: 0.1}
state: quality.json
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from PIL import Image
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from mmalign.evaluation import combining
from mmalign.evaluation.combining import Array, Moments
from mmalign.rewards import RewardModel, find_reward, score_many
from mmalign.training.config.section import Section

Transform = Literal["none", "running_z", "frozen_z", "per_prompt_z", "quantile", "log_sigmoid"]
FROZEN = ("frozen_z", "quantile", "log_sigmoid")
FORMAT = "mmalign.combined"


class MemberConfig(Section):
    """One reward. ``weight`` of its transformed score; ``baseline_level``: the quantile of the reference set's scores
    for a prompt that ``log_sigmoid`` subtracts; ``options``: keywords for the model (weights, device, dtype)."""

    reward: str
    transform: Transform = "none"
    weight: float = Field(default=1.0, gt=0)
    baseline_level: float = Field(default=0.5, ge=0, le=1)
    options: dict[str, Any] = Field(default_factory=dict)


class ConstraintConfig(Section):
    """Keep the mean score of ``reward`` at ``at_least``; ``rate`` of its multiplier, which begins at ``multiplier``."""

    reward: str
    at_least: float
    rate: float = Field(..., gt=0)
    multiplier: float = Field(default=0.0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)


class CombinedConfig(Section):
    """See the module. ``kappa``: standard deviations between rewards that ``lower_confidence`` subtracts."""

    name: str = "combined"
    aggregate: Literal["sum", "mean", "min", "lower_confidence"] = "sum"
    kappa: float = Field(default=1.0, ge=0)
    rewards: list[MemberConfig] = Field(..., min_length=1)
    constraints: list[ConstraintConfig] = Field(default_factory=list)
    state: str | None = None

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> "CombinedConfig":
        problems = []
        if "kappa" in self.model_fields_set and self.aggregate != "lower_confidence":
            problems.append(f"kappa belongs to aggregate: lower_confidence, not to {self.aggregate}")
        for member in self.rewards:
            if "weight" in member.model_fields_set and self.aggregate == "min":
                problems.append(f"weight of {member.reward} would be ignored by aggregate: min")
            if "baseline_level" in member.model_fields_set and member.transform != "log_sigmoid":
                problems.append(f"baseline_level of {member.reward} belongs to transform: log_sigmoid")
        names = [one.reward for one in (*self.rewards, *self.constraints)]
        problems += [f"reward {name} is there twice" for name in sorted({one for one in names if names.count(one) > 1})]
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass
class MemberState:
    """What a transform remembers: moments (z-scores), sorted reference scores (quantile), r_ref by prompt."""

    moments: Moments = field(default_factory=Moments)
    reference: list[float] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)


class CombinedReward:
    """reward = (aggregate of transformed scores + sum_k lambda_k (c_k - at_least_k)) / (1 + sum_k lambda_k).

    :meth:`score` never changes what it will answer: running moments and multipliers take in what was scored at
    :meth:`step`. Before the first step, ``running_z`` uses the moments of the batch itself. ``version`` changes with
    the settings, the members' versions and everything that is remembered.
    """

    prompt_limit: int | None

    def __init__(
        self, config: CombinedConfig, *, base: Path = Path(), find: Callable[..., RewardModel] = find_reward
    ) -> None:
        self.config, self.name = config, config.name
        asked = (*config.rewards, *config.constraints)
        self.models = {one.reward: find(one.reward, **one.options) for one in asked}
        # A model may be installed under another name than it gives itself.
        self._names = {self.models[name].name: name for name in self.models}
        self.states = {member.reward: MemberState() for member in config.rewards}
        self.multipliers = {one.reward: one.multiplier for one in config.constraints}
        self._waiting: dict[str, list[float]] = {name: [] for name in self.models}
        limits = [model.prompt_limit for model in self.models.values() if model.prompt_limit is not None]
        self.prompt_limit = min(limits, default=None)
        self.scale = f"{config.aggregate} of " + ", ".join(f"{one.reward} ({one.transform})" for one in config.rewards)
        self.licence = "; ".join(f"{name}: {model.licence}" for name, model in self.models.items())
        self.source = "; ".join(f"{name}: {model.source}" for name, model in self.models.items())
        self.version = self._version()
        self.state_file = None if config.state is None else base / config.state
        if self.state_file is not None and self.state_file.is_file():
            self.load(self.state_file)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, base: Path = Path(), find: Callable[..., RewardModel] = find_reward
    ) -> "CombinedReward":
        """From plain values. ``base``: the folder that ``state`` is in. ValueError that names every mistake."""
        try:
            config = CombinedConfig.model_validate(data)
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'combined'}: {one['msg']}" for one in error.errors())
            raise ValueError(f"combined reward: {told}") from error
        return cls(config, base=base, find=find)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """One number per picture; what each model gave waits for :meth:`step`."""
        raw = self.raw_scores(prompts, images)
        for name, scores in raw.items():
            if self._learns(name):
                self._waiting[name] += scores.tolist()
        return torch.from_numpy(self.combine(prompts, raw))

    def raw_scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Array]:
        """Reward name -> its own scores, float64."""
        found = score_many(list(self.models.values()), prompts, images)
        return {self._names[name]: scores.detach().double().cpu().numpy() for name, scores in found.items()}

    def combine(self, prompts: Sequence[str], raw: Mapping[str, ArrayLike]) -> Array:
        """The combined reward of scores that are there already, by reward name, each [batch]."""
        columns = np.stack([self._transformed(member, prompts, raw[member.reward]) for member in self.config.rewards])
        weights = [member.weight for member in self.config.rewards]
        if self.config.aggregate == "sum":
            total = combining.weighted_sum(columns, weights)
        elif self.config.aggregate == "mean":
            total = combining.weighted_mean(columns, weights)
        elif self.config.aggregate == "min":
            total = combining.worst_case(columns)
        else:
            total = combining.lower_confidence(columns, weights, kappa=self.config.kappa)
        for one in self.config.constraints:
            slack = np.asarray(raw[one.reward], dtype=np.float64) - one.at_least
            total = total + self.multipliers[one.reward] * slack
        return total / (1 + sum(self.multipliers.values()))

    def fit(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Freeze z-scores, quantiles and baselines to these pictures, such as the base model's."""
        self.fit_scores(prompts, self.raw_scores(prompts, images))

    def fit_scores(self, prompts: Sequence[str], raw: Mapping[str, ArrayLike]) -> None:
        """The same from scores that are there already."""
        for member in self.config.rewards:
            values, state = np.asarray(raw[member.reward], dtype=np.float64), MemberState()
            if len(values) < 2:
                raise ValueError(f"a reference set needs two pictures or more, got {len(values)}")
            if member.transform in ("frozen_z", "running_z"):
                state.moments = Moments().merged(values)
            elif member.transform == "quantile":
                state.reference = np.sort(values).tolist()
            elif member.transform == "log_sigmoid":
                state.baselines = dict(combining.baselines_of(prompts, values, member.baseline_level))
            self.states[member.reward] = state
        self.version = self._version()

    def step(self) -> dict[str, float]:
        """Take in what was scored since the last step: running moments and multipliers. Gives the multipliers."""
        for member in self.config.rewards:
            if member.transform == "running_z":
                state = self.states[member.reward]
                state.moments = state.moments.merged(self._waiting[member.reward])
        for one in self.config.constraints:
            if self._waiting[one.reward]:
                mean, old = float(np.mean(self._waiting[one.reward])), self.multipliers[one.reward]
                self.multipliers[one.reward] = combining.multiplier_step(old, mean, one.at_least, one.rate)
        self._waiting = {name: [] for name in self.models}
        self.version = self._version()
        return dict(self.multipliers)

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format": FORMAT,
            "versions": {name: model.version for name, model in self.models.items()},
            "members": {name: asdict(state) for name, state in self.states.items()},
            "multipliers": dict(self.multipliers),
        }

    def save(self, path: Path) -> None:
        """The state as JSON, there whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self.state_dict(), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Take over a saved state. ValueError where it is of other rewards or versions, or no such state."""
        try:
            self.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no state of a combined reward: {type(error).__name__} {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. ValueError where rewards or their versions differ."""
        own = {name: model.version for name, model in self.models.items()}
        if state.get("format") != FORMAT or state["versions"] != own:
            raise ValueError(
                f"the state is of the rewards {state.get('versions')}, and these are {own}: fit it again, for "
                "scores of different versions do not compare"
            )
        self.states = {
            name: MemberState(Moments(**one["moments"]), list(one["reference"]), dict(one["baselines"]))
            for name, one in state["members"].items()
        }
        self.multipliers = {name: float(value) for name, value in state["multipliers"].items()}
        self.version = self._version()

    def _version(self) -> str:
        told = {"config": self.config.model_dump(exclude={"state"}), **self.state_dict()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def _learns(self, name: str) -> bool:
        running = {member.reward for member in self.config.rewards if member.transform == "running_z"}
        return name in running or name in self.multipliers

    def _transformed(self, member: MemberConfig, prompts: Sequence[str], scores: ArrayLike) -> Array:
        values, state = np.asarray(scores, dtype=np.float64), self.states[member.reward]
        if member.transform == "none":
            return values
        if member.transform == "per_prompt_z":
            return combining.per_prompt_z(values, prompts)
        if member.transform == "running_z":
            return (state.moments if state.moments.count > 1 else Moments().merged(values)).standardised(values)
        if not (state.moments.count or state.reference or state.baselines):
            raise ValueError(
                f"{self.name}: transform {member.transform} of {member.reward} has no reference set yet; fit it on "
                "pictures of the base model first (CombinedReward.fit, or mmalign label --fit)"
            )
        if member.transform == "frozen_z":
            return state.moments.standardised(values)
        if member.transform == "quantile":
            return combining.quantile(values, state.reference)
        missing = next((prompt for prompt in prompts if prompt not in state.baselines), None)
        if missing is not None:
            raise ValueError(
                f"{self.name}: transform log_sigmoid of {member.reward} has no baseline for the prompt {missing!r}; "
                "its reference set must hold pictures of every prompt"
            )
        return combining.log_sigmoid_centred(values, [state.baselines[prompt] for prompt in prompts])
