"""All the doctor's checks of one recipe, cheap ones first; nothing is written and nothing is trained."""

from collections.abc import Iterator

import torch

from mmalign.data.table import count
from mmalign.doctor.betas import beta_findings
from mmalign.doctor.findings import Finding, Level
from mmalign.doctor.laws import law_findings
from mmalign.doctor.memory import MemoryEstimate, predict_memory
from mmalign.doctor.prompts import prompt_findings
from mmalign.losses import Objective
from mmalign.training.config import Config
from mmalign.training.image_data import ImageData, open_head
from mmalign.training.image_model import checked_objective
from mmalign.training.plan import ModelShape, shape_of_model
from mmalign.training.strategy import check_packages
from mmalign.training.task import TRAIN
from mmalign.training.vlm_data import VLMData

SMALL_MODEL = 400_000_000  # bytes of weights that are loaded without being asked to
GIB = 2**30
HALF_TIES = 0.5


def examine(config: Config, *, load: bool = False) -> Iterator[Finding]:
    """Findings as they are made. ``load``: load the weights whatever their size, to check the laws of step 0.

    ValueError for what would stop the run before its first step.
    """
    if config.family == "vlm":
        from mmalign.doctor.vlm import examine_vlm

        yield from examine_vlm(config, load=load)
        return
    if config.family != "image":
        raise ValueError(f"mmalign doctor knows recipes of family image and vlm; this one is family: {config.family}")
    objective = checked_objective(config)
    check_packages(config)
    shape = shape_of_model(config)
    yield _model_finding(config, shape)
    data = open_head(config, objective)
    yield from data_findings(config, data, objective)
    yield from prompt_findings(config, data.tables[TRAIN].prompts)
    yield from beta_findings(config.objective, shape.latent_values)
    yield from schedule_findings(config, data)
    memory = predict_memory(config)
    yield from memory_findings(config, memory)
    yield cache_finding(config, data, shape)
    if load or memory.weights + memory.encoders < SMALL_MODEL:
        yield from law_findings(config, data)
    else:
        yield Finding(Level.note, "step 0", "not checked: the weights are large; --load loads them and checks")


def _model_finding(config: Config, shape: ModelShape) -> Finding:
    what = "LoRA" if config.model.lora else "all weights"
    text = (
        f"{config.model.name} ({shape.kind}), {what}: {shape.trained:,} of {shape.parameters:,} parameters are trained"
    )
    return Finding(Level.ok, "model", text)


def data_findings(config: Config, data: ImageData | VLMData, objective: Objective) -> Iterator[Finding]:
    """What the data's head and its labels say."""
    yield Finding(Level.ok, "data", data.report)
    report = data.tables[TRAIN].report
    share = report.ties / report.rows if report.rows else 0.0
    if share > HALF_TIES:
        text = f"{share:.0%} of the rows are ties; what is left may not be worth a run"
        yield Finding(Level.warning, "ties", text)
    elif report.ties_dropped:
        soft = " soft_dpo with data.ties=soft would use them." if "dpo" in str(config.objective[0]["loss"]) else ""
        yield Finding(Level.note, "ties", f"{share:.1%} of the rows are ties and dropped.{soft}")
    if report.soft and "preference" not in objective.asks:
        yield Finding(
            Level.note,
            "labels",
            f"{count(report.soft, 'soft label')} are used as if they were certain",
            "objective.0.loss=soft_dpo" if config.objective[0]["loss"] == "dpo" else None,
        )


def schedule_findings(config: Config, data: ImageData | VLMData) -> Iterator[Finding]:
    """Steps, epochs, learning rate and warm-up against each other."""
    training = config.training
    batch = training.batch_size * training.accumulation
    epochs = training.steps * batch / max(1, data.size(TRAIN))
    yield Finding(
        Level.note, "schedule", f"{training.steps:,} steps of {batch} rows on one process: {epochs:.2f} epochs"
    )
    if epochs > 20:
        yield Finding(
            Level.warning,
            "schedule",
            f"every row is seen about {epochs:.0f} times; preference losses over-optimise long before",
            f"training.steps={max(1, round(5 * data.size(TRAIN) / batch))}",
        )
    if config.model.lora is None and training.learning_rate > 1e-4:
        text = f"learning rate {training.learning_rate:g} on all weights; published runs use 1e-8 to 2e-5"
        yield Finding(Level.warning, "schedule", text, "training.learning_rate=1e-5")
    if training.mixed_precision == "fp16":
        text = "fp16 needs loss scaling and can overflow; bf16 does not, on every GPU since 2020"
        yield Finding(Level.note, "precision", text, "training.mixed_precision=bf16")


def memory_findings(config: Config, memory: MemoryEstimate) -> Iterator[Finding]:
    """The predicted peak, by part, against the device at hand."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.parts.items() if size)
    text = f"{memory.total / GIB:.2f} GiB predicted on one device ({parts} GiB; kernels' workspaces come on top)"
    available = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
    if available is None or memory.total < 0.9 * available:
        yield Finding(Level.ok, "memory", text)
    else:
        yield Finding(Level.warning, "memory", f"{text}; this device has {available / GIB:.1f} GiB")
    if memory.activations > memory.total / 2 and not config.training.gradient_checkpointing:
        yield Finding(
            Level.note,
            "memory",
            f"{memory.activations / memory.total:.0%} of it are activations, which "
            "checkpointing mostly saves (a third slower)",
            "training.gradient_checkpointing=true",
        )
    if memory.encoders > memory.total / 5 and config.data.cache == "none" and config.data.crop == "center":
        yield Finding(
            Level.note,
            "memory",
            f"encoders hold {memory.encoders / GIB:.2f} GiB; with a cache they leave, and every step is faster",
            "data.cache=disk",
        )


def cache_finding(config: Config, data: ImageData, shape: ModelShape) -> Finding:
    """Size of the latents on disk or in memory."""
    pictures = sum(data.shapes.pictures(table) for table in data.tables.values())
    sides = 2 if config.data.flip else 1
    numbers = 1 if config.data.cache_latents == "sampled" else 2
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[config.data.cache_dtype]
    branches = len(Objective(config.objective).branches) if data.tables[TRAIN].kind == "pair" else 1
    size = pictures * branches * sides * numbers * width * shape.latent_values
    would = "takes" if config.data.cache != "none" else "would take"
    return Finding(Level.note, "cache", f"a cache of all latents {would} {size / GIB:.2f} GiB, text not counted")
