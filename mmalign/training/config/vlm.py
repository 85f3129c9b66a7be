"""``vlm:`` what only vision-language models have, and the settings of the others that they do not read."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mmalign.training.config.generators import generator_settings
from mmalign.training.config.loop import TrainingConfig
from mmalign.training.config.model import LoRAConfig, ModelConfig
from mmalign.training.config.section import Section

Family = Literal["image", "vlm", "reward"]


class VLMConfig(Section):
    """How pairs of responses are scored and what of the model is trained.

    ``pack``: chosen and rejected behind one copy of prompt and pictures (``always``), each behind its own (``never``),
    or packed wherever that is exact (``auto``). ``row_tokens``: rows of up to so many tokens may hold several prompts.
    ``max_length``: tokens of prompt, pictures and one response; a response is cut to fit, a prompt with its pictures
    never is, so a row that leaves no room for a response is left out and named. ``freeze``: ``vision`` trains the
    language model alone, ``tower`` the projector too, ``none`` everything; LoRA goes only where that allows.
    ``attention``: flex_attention skips what packed responses must not see; flash_attention_2 takes no such mask.

    ``corruptions``: name behind the @ of a branch -> parameters of that corruption, ``corruption`` among them where the
    name is another: ``{strong: {corruption: noise, step: 800}}`` for ``chosen@strong``. A mirrored picture is wrong
    only for texts that tell left from right: other rows lack a branch of ``flip``, are counted, and get the corruption
    ``otherwise`` where it is named: ``{flip: {otherwise: crop}}``.

    ``changed_weight``: words that chosen and rejected do not share count so many times the others in their log-probs
    (dense DPO of RLHF-V: 5, CHiP: 4).

    ``frames``: of a video, so many at most are shown, evenly spaced (default 8). ``min_pixels``, ``max_pixels``:
    pictures are scaled to lie between, by processors that choose the size themselves (Qwen's, whose own is default).
    """

    pack: Literal["auto", "always", "never"] = "auto"
    row_tokens: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=2048, ge=2)
    freeze: Literal["vision", "tower", "none"] = "vision"
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa"
    corruptions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    changed_weight: float | None = Field(default=None, gt=0)
    frames: int | None = Field(default=None, ge=1)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> "VLMConfig":
        problems = []
        if self.row_tokens is not None and self.pack == "never":
            problems.append("vlm.row_tokens would be ignored with vlm.pack: never; leave it out")
        if self.attention == "flash_attention_2" and self.pack == "always":
            problems.append("vlm.pack: always needs an attention mask of its own; take vlm.attention=flex_attention")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            problems.append(f"vlm.min_pixels={self.min_pixels} is above vlm.max_pixels={self.max_pixels}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


_NOT_READ = ("data.relabel", "data.shuffle", "data.shuffle_window")
LANGUAGE_LAYERS = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


def family_problems(family: Family, vlm: VLMConfig | None, sections: dict[str, Section]) -> list[str]:
    """Settings that belong to the other family; ``sections`` by name."""
    if family != "vlm":
        told = f"vlm: would be ignored by family: {family}; leave it out, or set family: vlm"
        return [told] if vlm is not None else []
    if vlm is None:
        return ["vlm: null leaves family: vlm without its settings; leave the line out for the defaults"]
    problems = [
        f"{name} is for image generators and is not read for family: vlm; leave it out"
        for name in generator_settings(sections, also=_NOT_READ)
    ]
    model, training = sections["model"], sections["training"]
    assert isinstance(model, ModelConfig)
    assert isinstance(training, TrainingConfig)
    lora = model.lora
    if lora is not None and lora.targets == LoRAConfig.model_fields["targets"].default:
        problems.append(
            f"model.lora.targets: {', '.join(lora.targets)} are layers of image generators; name those of the language "
            f"model, such as {LANGUAGE_LAYERS}"
        )
    if lora is not None and lora.dropout:
        problems.append(
            f"model.lora.dropout: {lora.dropout:g} would make policy and reference differ before the first step, and "
            "give responses that share a prompt one mask; set it to 0"
        )
    if training.strategy == "deepspeed":
        problems.append("training.strategy: deepspeed was not tried with family: vlm; use fsdp, ddp or single")
    return problems
