"""``reward:`` what only reward models have; and the settings of generators that mean nothing for them."""

from typing import Literal

from pydantic import Field

from mmalign.training.config.generators import generator_settings
from mmalign.training.config.loop import TrainingConfig
from mmalign.training.config.model import LoRAConfig, ModelConfig
from mmalign.training.config.section import Section


class HeadConfig(Section):
    """``reward.head``: what makes scores of the CLIP's features of prompt and picture.

    ``cosine``: exp(logit_scale) * cosine (HPSv2, PickScore). ``gaussian``: mean and standard deviation (HPSv3).
    ``multi``: a score for each of ``dimensions``, column -> weight in the overall score; the column holds the
    probability that the row's first picture is the better one in that dimension, or nothing. ``mixture``: a score for
    each of ``groups`` of users. ``pal_a``, ``pal_b``: ideal points of users, mixtures of ``groups`` prototypes (PAL).
    ``gpm``: which of two is preferred, without scores (general preference model). The last four but ``gpm`` need rows
    with a user. ``hidden``: width of the head's perceptrons; ``features``: width of what they give, for ``pal_a``,
    ``pal_b`` and ``gpm``; ``dropout``: before their last layer (HPSv3: 0.05).
    """

    kind: Literal["cosine", "gaussian", "multi", "mixture", "pal_a", "pal_b", "gpm"] = "cosine"
    hidden: int = Field(default=64, ge=1)
    features: int = Field(default=16, ge=2)
    groups: int = Field(default=2, ge=2)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dimensions: dict[str, float] = Field(default_factory=dict)


# Kind of head -> its settings.
HEAD_SETTINGS: dict[str, tuple[str, ...]] = {
    "cosine": (),
    "gaussian": ("hidden", "dropout"),
    "multi": ("hidden", "dropout", "dimensions"),
    "mixture": ("hidden", "dropout", "groups"),
    "pal_a": ("hidden", "dropout", "groups", "features"),
    "pal_b": ("hidden", "dropout", "groups", "features"),
    "gpm": ("hidden", "dropout", "features"),
}


class RewardConfig(Section):
    """A CLIP, the ``head`` that makes scores of its features, and what of the CLIP is trained beside ``logit_scale``.

    ``text_layers``, ``image_layers``: the last so many transformer layers of that tower with its final norm and its
    projection; 0: nothing of it; null: the whole tower. With ``model.lora`` the towers are frozen under the LoRA.
    ``fit``: ``crop`` cuts the middle square (PickScore), ``letterbox`` shows the whole picture on black (HPSv2).
    ``logit_scale`` is kept at or below ln 100, as HPSv2 and open_clip do.
    """

    text_layers: int | None = Field(default=None, ge=0)
    image_layers: int | None = Field(default=None, ge=0)
    fit: Literal["crop", "letterbox"] = "crop"
    head: HeadConfig = Field(default_factory=HeadConfig)


ATTENTION_LAYERS = "[q_proj, k_proj, v_proj, out_proj]"


def reward_problems(family: str, reward: RewardConfig | None, sections: dict[str, Section]) -> list[str]:
    """Settings that a reward model does not have, or that only it has; ``sections`` by name."""
    if family != "reward":
        told = f"reward: would be ignored by family: {family}; leave it out, or set family: reward"
        return [told] if reward is not None else []
    if reward is None:
        return ["reward: null leaves family: reward without its settings; leave the line out for the defaults"]
    problems = [
        f"{name} is for generators and is not read for family: reward; leave it out"
        for name in generator_settings(sections, also=("model.revision",))
    ]
    model, training = sections["model"], sections["training"]
    assert isinstance(model, ModelConfig)
    assert isinstance(training, TrainingConfig)
    if model.dtype != "float32":
        problems.append(
            f"model.dtype: {model.dtype}: the weights of reward models are kept in float32; set "
            "training.mixed_precision=bf16"
        )
    problems += _lora_problems(model.lora, reward) + _head_problems(reward.head)
    if training.strategy in ("fsdp", "deepspeed"):
        problems.append(f"training.strategy: {training.strategy} was not tried with family: reward; use ddp or single")
    return problems


def _lora_problems(lora: LoRAConfig | None, reward: RewardConfig) -> list[str]:
    if lora is None:
        if reward.text_layers == 0 and reward.image_layers == 0 and reward.head.kind == "cosine":
            return ["reward.text_layers: 0 and reward.image_layers: 0 leave nothing to train but logit_scale"]
        return []
    problems = []
    if reward.text_layers is not None or reward.image_layers is not None:
        problems.append(
            "reward.text_layers and reward.image_layers would be ignored with model.lora, under which the towers are "
            "frozen; leave them out, or model.lora"
        )
    if lora.targets == LoRAConfig.model_fields["targets"].default:
        problems.append(
            f"model.lora.targets: {', '.join(lora.targets)} are layers of image generators; name those of a CLIP, such "
            f"as {ATTENTION_LAYERS}"
        )
    if lora.train_also:
        problems.append("model.lora.train_also is not there for family: reward; leave it out")
    return problems


def _head_problems(head: HeadConfig) -> list[str]:
    problems = []
    for name, field in HeadConfig.model_fields.items():
        read = name in ("kind", *HEAD_SETTINGS[head.kind])
        if not read and getattr(head, name) != field.get_default(call_default_factory=True):
            takes = ", ".join(HEAD_SETTINGS[head.kind]) or "no settings"
            problems.append(f"reward.head.{name} would be ignored: kind: {head.kind} takes {takes}; leave it out")
    if head.kind == "gpm" and head.features % 2:
        problems.append(f"reward.head.features: {head.features} must be even for kind: gpm, which pairs them")
    if head.kind == "multi":
        weights = list(head.dimensions.values())
        if not weights:
            problems.append("reward.head.dimensions is empty; name the columns that multi learns, {column: weight}")
        elif min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            problems.append(f"reward.head.dimensions: weights {weights} must be 0 or more, and one of them above 0")
    return problems
