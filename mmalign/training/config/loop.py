"""``training:`` the loop."""

from typing import Literal

from pydantic import Field

from mmalign.training.config.section import Section
from mmalign.training.config.stabilisers import CurriculumConfig, GuardConfig, SafeguardConfig


class TimestepConfig(Section):
    """How training timesteps are drawn. ``turbo``: t = 249, 499, 749, 999 (SDXL-Turbo). Flow models: ``shift`` warps
    uniform or ``logit_normal`` times; ``shift: null`` takes the scheduler's. ``zero_terminal_snr``: rescale a diffusion
    model's betas so that its last timestep is pure noise (arXiv 2305.08891), as Diffusion-DPO does for SDXL-Turbo."""

    kind: Literal["uniform", "turbo", "logit_normal"] = "uniform"
    shift: float | None = Field(default=None, gt=0)
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)
    zero_terminal_snr: bool = False


class EMAConfig(Section):
    """Exponential moving average of the trained weights; it is what is exported and evaluated."""

    decay: float = Field(default=0.999, gt=0, lt=1)


class TrainingConfig(Section):
    """The loop. The global batch is ``batch_size * accumulation * processes`` rows; the loss is averaged over it.

    ``rounds``, of vision-language models (mrDPO, arXiv 2506.15220): so many runs of ``steps`` steps. After each, the
    adapters are merged into the model, and the next begins with fresh ones, a fresh optimizer and schedule, rows in
    another order, and the merged model as its reference. Each round keeps a copy of the model on disk.
    """

    steps: int = Field(..., ge=1)
    rounds: int = Field(default=1, ge=1)
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
    safeguard: SafeguardConfig | None = None
    curriculum: CurriculumConfig | None = None
    guard: GuardConfig | None = None
    checkpoint_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
