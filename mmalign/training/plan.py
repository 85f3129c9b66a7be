"""What a run will do, worked out before any weight is loaded: the table of ``--dry-run``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mmalign.losses import Objective
from mmalign.models import ModelInfo, make_trainable, peek
from mmalign.models.choices import check_choices
from mmalign.models.hub_errors import HUB_ERRORS, explain
from mmalign.models.skeleton import skeleton_of
from mmalign.training.config import Config
from mmalign.training.image_cache import cache_size
from mmalign.training.image_data import ImageData
from mmalign.training.image_reference import read_start, reference_kind
from mmalign.training.image_shapes import check_shapes
from mmalign.training.kept_scores import scores_size
from mmalign.training.task import HELD_OUT, TRAIN


@dataclass(frozen=True)
class Plan:
    """(name, value) lines, in the order in which they are shown."""

    lines: tuple[tuple[str, str], ...]

    def __rich__(self) -> Table:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in self.lines:
            table.add_row(Text(name, "bold"), Text(value))
        return table


@dataclass(frozen=True)
class ModelShape:
    """Numbers of trained and of all parameters, and of values in the latents of one picture."""

    kind: str
    trained: int
    parameters: int
    latent_values: int


def shape_of_model(config: Config) -> ModelShape:
    """The denoiser as it will be trained, without its weights; ValueError for LoRA targets that match nothing."""
    info = peek(config.model)
    check_choices(config.model, info)
    denoiser = skeleton_of(info, revision=config.model.revision)
    if config.model.adapter is not None:
        read_start(config, denoiser, reference_kind(config, Objective(config.objective)))
    trained = make_trainable(denoiser, config.model.lora)
    # SD3 and Flux take latents in patches of 2 x 2.
    side = _vae_factor(config, info) * (2 if info.kind in ("sd3", "flux") else 1)
    check_shapes(config.data, side, most=getattr(denoiser.config, "pos_embed_max_size", None))
    return ModelShape(
        info.kind,
        sum(parameter.numel() for parameter in trained),
        sum(parameter.numel() for parameter in denoiser.parameters()),
        _latent_values(config, info),
    )


def make_plan(config: Config, data: ImageData, shape: ModelShape, processes: int = 1) -> Plan:
    """The plan of ``config``; ``processes`` share the global batch."""
    objective, training = Objective(config.objective), config.training
    batch, rows = training.batch_size * training.accumulation * processes, data.size(TRAIN)
    kind = reference_kind(config, objective)
    lines = [
        ("model", f"{config.model.name} ({shape.kind}), {'LoRA' if config.model.lora else 'full weights'}"),
        ("trained parameters", f"{shape.trained:,} of {shape.parameters:,}"),
        ("reference", REFERENCES[kind]),
        ("data", data.report),
        ("rows", f"{rows:,} to train on, {data.size(HELD_OUT):,} held out"),
        *_groups(data, batch),
        (
            "global batch",
            f"{batch} = {training.batch_size} x {training.accumulation} accumulated x {processes} processes",
        ),
        ("steps", f"{training.steps:,}, {training.steps * batch / rows:.2f} epochs of {math.ceil(rows / batch)} steps"),
        *((f"objective.{index}", _term(term, shape.latent_values)) for index, term in enumerate(config.objective)),
        (
            "disk for latents" if config.data.cache == "disk" else "memory for latents",
            _cache_size(config, data, len(objective.branches), shape.latent_values),
        ),
        *reference_scores_line(config, data.size(HELD_OUT), objective.branches, processes),
        ("output", config.output),
    ]
    return Plan(tuple(lines))


def reference_scores_line(
    config: Config, held_out: int, branches: Sequence[str], processes: int
) -> list[tuple[str, str]]:
    """What ``reference: cached`` takes on disk, where it is asked for; ``held_out``: number of such rows."""
    if config.reference.kind != "cached":
        return []
    return [("disk for reference scores", scores_size(config, held_out, branches, processes))]


REFERENCES = {
    "none": "none: the objective needs none",
    "lora_off": "the policy with its LoRA adapters off, no second copy",
    "frozen": "a frozen copy of the weights",
    "adapter": "a frozen adapter beside the trained one, no second copy",
    "snapshot": "the policy as it was, renewed now and then",
    "ema": "a moving average of the policy",
}


def _groups(data: ImageData, batch: int) -> Iterator[tuple[str, str]]:
    """How many shapes of rows there are, and what becomes of those that have fewer rows than a step."""
    groups = data.shapes.groups(data.tables[TRAIN])
    if groups is None:
        return
    sizes = np.bincount(groups)
    small = int((sizes < batch).sum())
    text = f"{len(sizes)}, each step takes rows of one"
    if small:
        text += (
            f"; {small} have fewer rows than the global batch (the smallest {sizes.min()}), so a step of theirs comes "
            f"once in several epochs ({batch / sizes.min():.1f}) and holds rows more than once"
        )
    yield ("shapes of rows", text)


def _term(term: dict[str, Any], latent_values: int) -> str:
    """The term as configured; what its beta weighs, because codes differ in how they reduce the squared error."""
    text = ", ".join(f"{key}: {value}" for key, value in term.items())
    if isinstance(term.get("beta"), int | float) and "snr" not in term:
        scale = term["beta"] / latent_values
        text += f"  (beta on the mean over {latent_values:,} latent values; on their sum it would be {scale:.3g})"
    return text


def _cache_size(config: Config, data: ImageData, branches: int, latent_values: int) -> str:
    if config.data.cache == "none":
        return "none: encoded at every step"
    rows = data.size(TRAIN) + data.size(HELD_OUT)
    pictures = {split: branches * data.shapes.pictures(table) for split, table in data.tables.items()}
    if config.data.cache == "disk":
        return cache_size(config, pictures, latent_values)
    size = sum(pictures.values()) * 2 * 4 * latent_values  # mean and standard deviation, four bytes each
    return f"{size / 2**20:,.1f} MiB for {rows:,} rows, text embeddings not counted"


def _latent_values(config: Config, info: ModelInfo) -> int:
    """Values in the latents of one picture."""
    from diffusers import AutoencoderKL

    settings = _settings(AutoencoderKL, config, info, "vae")
    side = config.data.resolution // _vae_factor(config, info)
    return settings["latent_channels"] * side * side


def _vae_factor(config: Config, info: ModelInfo) -> int:
    """Pixels of a picture's side per value of its latents' side."""
    from diffusers import AutoencoderKL

    return 2 ** (len(_settings(AutoencoderKL, config, info, "vae")["block_out_channels"]) - 1)


def _settings(model_class: Any, config: Config, info: ModelInfo, part: str) -> Any:
    try:
        return model_class.load_config(info.location, subfolder=part, revision=config.model.revision)
    except HUB_ERRORS as error:
        raise ValueError(explain(error, config.model.name, revision=config.model.revision)) from error
