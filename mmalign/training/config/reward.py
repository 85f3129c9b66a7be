"""``reward:`` what only reward models have; and the settings of generators that mean nothing for them."""

from typing import Literal

from pydantic import Field

from mmalign.training.config.generators import generator_settings
from mmalign.training.config.loop import TrainingConfig
from mmalign.training.config.model import LoRAConfig, ModelConfig
from mmalign.training.config.section import Section


class RewardConfig(Section):
    """score = exp(logit_scale) * cos(text, picture) of a CLIP, and what of it is trained beside ``logit_scale``.

    ``text_layers``, ``image_layers``: the last so many transformer layers of that tower with its final norm and its
    projection; 0: nothing of it; null: the whole tower. With ``model.lora`` the towers are frozen under the LoRA.
    ``fit``: ``crop`` cuts the middle square (PickScore), ``letterbox`` shows the whole picture on black (HPSv2).
    ``logit_scale`` is kept at or below ln 100, as HPSv2 and open_clip do.
    """

    text_layers: int | None = Field(default=None, ge=0)
    image_layers: int | None = Field(default=None, ge=0)
    fit: Literal["crop", "letterbox"] = "crop"


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
    problems += _lora_problems(model.lora, reward)
    if training.strategy in ("fsdp", "deepspeed"):
        problems.append(f"training.strategy: {training.strategy} was not tried with family: reward; use ddp or single")
    return problems


def _lora_problems(lora: LoRAConfig | None, reward: RewardConfig) -> list[str]:
    if lora is None:
        if reward.text_layers == 0 and reward.image_layers == 0:
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
