"""The configuration schema: the only source of defaults, validated as a whole before anything heavy is imported.

A file is YAML with the top-level keys of :class:`Config`; ``key.path=value`` overrides are applied on top, with list
items addressed by index (``objective.0.beta=3``). Every mistake is reported at once, with its path, the value given
and what is allowed. This module must stay light: importing it must not import torch or diffusers.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced from strings of another kind."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class LoRAConfig(Section):
    """Low-rank adapters through peft. ``alpha / rank`` is the factor on the update; ``targets`` are module suffixes."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: list[str] = Field(default=["to_k", "to_q", "to_v", "to_out.0"], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(Section):
    """What is trained. ``name``: a folder, a hub id, or ``playground/NAME``. ``lora: null`` trains all weights."""

    name: str
    lora: LoRAConfig | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    variant: str | None = None
    revision: str | None = None


class DataConfig(Section):
    """Where preference pairs come from and how pixels are prepared (jointly for both sides of a pair).

    ``source`` is a key of ``mmalign.data.SOURCES``. ``ties``: ``drop`` them, keep them as ``soft`` labels, ``error``.
    ``max_corrupt`` is the share of unreadable rows above which a run refuses to start. ``held_out`` is the share of
    *prompts* (never of rows of the same prompt) kept for the held-out metric.
    """

    source: str
    path: str
    ties: Literal["drop", "soft", "error"] = "drop"
    resolution: int = Field(default=512, ge=8)
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    max_corrupt: float = Field(default=0.01, ge=0, le=1)
    max_rows: int | None = Field(default=None, ge=1)
    held_out: float = Field(default=0.0, ge=0, lt=1)
    cache: Literal["none", "memory"] = "none"


class TimestepConfig(Section):
    """How training timesteps are drawn. ``turbo``: t = 249, 499, 749, 999 (SDXL-Turbo). Flow models: ``shift`` warps
    uniform or ``logit_normal`` times; ``shift: null`` takes the scheduler's."""

    kind: Literal["uniform", "turbo", "logit_normal"] = "uniform"
    shift: float | None = Field(default=None, gt=0)
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)


class EMAConfig(Section):
    """Exponential moving average of the trained weights; it is what is exported and evaluated."""

    decay: float = Field(default=0.999, gt=0, lt=1)


class TrainingConfig(Section):
    """The loop. The global batch is ``batch_size * accumulation * processes`` rows; the loss is averaged over it."""

    steps: int = Field(..., ge=1)
    batch_size: int = Field(default=4, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: EMAConfig | None = None
    seed: int = Field(default=0, ge=0)
    timesteps: TimestepConfig = Field(default_factory=TimestepConfig)
    checkpoint_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"


class PicturesConfig(Section):
    """Sample the same prompts and seeds every ``every`` steps, before the first step included."""

    every: int = Field(..., ge=1)
    prompts: list[str] = Field(..., min_length=1)
    seed: int = 0
    inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=5.0, ge=0)


class EarlyStopConfig(Section):
    """Stop after ``patience`` evaluations without improvement of ``metric``; the best checkpoint is exported."""

    metric: Literal["loss", "accuracy", "margin"] = "accuracy"
    patience: int = Field(default=3, ge=1)


class EvaluationConfig(Section):
    """What is measured during training, on ``data.held_out`` pairs, with the same noise every time."""

    every: int | None = Field(default=None, ge=1)
    early_stop: EarlyStopConfig | None = None
    pictures: PicturesConfig | None = None


class Config(Section):
    """One run. ``reference: auto`` takes what the objective needs: none, adapters switched off, or a frozen copy."""

    model: ModelConfig
    reference: Literal["auto", "none", "frozen", "lora_off"] = "auto"
    data: DataConfig
    objective: list[dict[str, Any]] = Field(..., min_length=1)
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
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
        if self.reference == "lora_off" and self.model.lora is None:
            problems.append("reference: lora_off needs model.lora; use frozen for full weights")
        if data.cache == "memory" and (data.flip or data.crop == "random"):
            problems.append("data.cache: memory stores each picture once; switch off data.flip and data.crop: random")
        if self.training.schedule == "constant" and self.training.warmup_steps >= self.training.steps:
            problems.append("training.warmup_steps must be smaller than training.steps")
        if problems:
            raise ValueError("\n".join(problems))
        return self
