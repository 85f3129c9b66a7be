"""``evaluation:`` what is measured while a run trains."""

from typing import Literal

from pydantic import Field, model_validator

from mmalign.training.config.section import Section


class PicturesConfig(Section):
    """Sample the same prompts and seeds every ``every`` steps, before the first step included.

    ``proxy_reward``: the reward model that made the labels, or any other that training follows; ``held_out_reward``:
    one that training never sees. Both (a name, or a .yaml that combines some) score the pictures: where the first
    rises and the second falls, the model is over-optimised (see ``training.guard.over_optimisation``).
    """

    every: int = Field(..., ge=1)
    prompts: list[str] = Field(..., min_length=1)
    seed: int = 0
    inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=5.0, ge=0)
    proxy_reward: str | None = None
    held_out_reward: str | None = None

    @model_validator(mode="after")
    def _two_rewards(self) -> "PicturesConfig":
        if self.proxy_reward is not None and self.proxy_reward == self.held_out_reward:
            raise ValueError(
                f"proxy_reward and held_out_reward are both {self.proxy_reward}: a reward cannot check itself"
            )
        return self


class EarlyStopConfig(Section):
    """Stop after ``patience`` evaluations without improvement of ``metric``; the best checkpoint is exported."""

    metric: Literal["loss", "accuracy", "margin"] = "accuracy"
    patience: int = Field(default=3, ge=1)


class EvaluationConfig(Section):
    """What is measured during training, on ``data.held_out`` pairs, with the same noise every time.

    ``timestep_bins``: equal bins of [0, 1000) by which margin, accuracy and log-ratios are logged.
    """

    every: int | None = Field(default=None, ge=1)
    timestep_bins: int = Field(default=10, ge=1, le=100)
    early_stop: EarlyStopConfig | None = None
    pictures: PicturesConfig | None = None
