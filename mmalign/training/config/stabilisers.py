"""``training.safeguard``, ``training.curriculum``, ``training.guard``: what keeps a run from going bad, or ends it."""

from typing import Literal

from pydantic import Field, model_validator

from mmalign.training.config.evaluation import EvaluationConfig, PicturesConfig
from mmalign.training.config.section import Section

ON_HELD_OUT = ("held_out_loss", "held_out_accuracy")
ON_PICTURES = ("diversity", "saturation", "contrast", "sharpness", "held_out_reward", "over_optimisation")
WATCHED = (*ON_HELD_OUT, "grad_norm", "logratio", *ON_PICTURES)


class SafeguardConfig(Section):
    """Diffusion-SDPO: scale the rejected side's gradient of a pair so that the chosen error keeps falling, to first
    order, at ``mu`` times the speed it had alone. The published values: 0.9 for SD1.5, 0.6 for SDXL."""

    mu: float = Field(default=0.9, ge=0, le=1)


class CurriculumConfig(Section):
    """Easy rows first (Curry-DPO): rows sorted by ``by`` and cut into ``stages`` parts of equal size; every part is
    shuffled and trained on for ``stage_steps`` steps, the last one, the hardest, to the end of the run.

    ``margin``: the larger the column, the easier; ``preference``: the further from a tie; ``labels``, of rankings: the
    further the best label is from the worst.
    """

    by: Literal["margin", "preference", "labels"]
    stages: int = Field(default=3, ge=2)
    stage_steps: int = Field(..., ge=1)


class GuardConfig(Section):
    """Stop (after a checkpoint), or warn, when a run goes bad. Each number switches one watch on; null is off.

    ``held_out_loss``: above that of the untrained model by more than this. ``held_out_accuracy``: below it by more than
    this. ``grad_norm``: larger than this many times the median of the lines before. ``logratio``: chosen or rejected
    log-ratio further from 0 than this. ``diversity``: the pictures' mean distance from each other below this share of
    what it was before the first step. ``saturation``, ``contrast``, ``sharpness``: that many times larger or smaller.
    ``held_out_reward``: mean of ``evaluation.pictures.held_out_reward`` below that of the untrained model by more than
    this. ``over_optimisation``: below its own best by more than this while ``proxy_reward`` is higher than it was then.
    Both in units of the held-out reward: choose them above its noise over as few pictures as there are.
    """

    action: Literal["stop", "warn"] = "stop"
    held_out_loss: float | None = Field(default=None, gt=0)
    held_out_accuracy: float | None = Field(default=None, gt=0, lt=1)
    grad_norm: float | None = Field(default=None, gt=1)
    logratio: float | None = Field(default=None, gt=0)
    diversity: float | None = Field(default=None, gt=0, lt=1)
    saturation: float | None = Field(default=None, gt=1)
    contrast: float | None = Field(default=None, gt=1)
    sharpness: float | None = Field(default=None, gt=1)
    held_out_reward: float | None = Field(default=None, gt=0)
    over_optimisation: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _watches_something(self) -> "GuardConfig":
        if all(getattr(self, name) is None for name in WATCHED):
            raise ValueError(f"a guard that watches nothing would be ignored; set at least one of {', '.join(WATCHED)}")
        return self


def stabiliser_problems(
    steps: int, curriculum: CurriculumConfig | None, guard: GuardConfig | None, evaluation: EvaluationConfig
) -> list[str]:
    """What these sections ask for that the rest of the configuration does not give."""
    problems = []
    if curriculum is not None and (curriculum.stages - 1) * curriculum.stage_steps >= steps:
        problems.append(
            f"training.curriculum: {curriculum.stages} stages of {curriculum.stage_steps} steps do not fit into "
            f"training.steps={steps}: the last one would never begin; use fewer stages or stage_steps="
            f"{max(1, steps // curriculum.stages)}"
        )
    if guard is None:
        return problems
    if evaluation.every is None:
        problems += [f"training.guard.{name} needs evaluation.every" for name in ON_HELD_OUT if getattr(guard, name)]
    if evaluation.pictures is None:
        problems += [f"training.guard.{name} needs evaluation.pictures" for name in ON_PICTURES if getattr(guard, name)]
    elif guard.diversity and len(evaluation.pictures.prompts) < 2:
        problems.append("training.guard.diversity compares pictures: evaluation.pictures.prompts needs two or more")
    if evaluation.pictures is not None:
        problems += _reward_problems(guard, evaluation.pictures)
    return problems


def _reward_problems(guard: GuardConfig, pictures: PicturesConfig) -> list[str]:
    needs = {"held_out_reward": ("held_out_reward",), "over_optimisation": ("held_out_reward", "proxy_reward")}
    return [
        f"training.guard.{watch} needs evaluation.pictures.{name}"
        for watch, names in needs.items()
        for name in names
        if getattr(guard, watch) is not None and getattr(pictures, name) is None
    ]
