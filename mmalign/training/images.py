"""Text-to-image models with pairs, rankings or single pictures, as the trainer sees them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from mmalign.adapters import DiffusionAdapter, FlowAdapter
from mmalign.evaluation.collapse import picture_measures
from mmalign.losses import Objective
from mmalign.models import Card, Components, PromptEmbeddings, generate, load_components, save_aligned
from mmalign.models.vae import draw
from mmalign.pictures import grid
from mmalign.references import CachedReference, Reference, move_reference
from mmalign.training.config import Config
from mmalign.training.curriculum import check_difficulty
from mmalign.training.image_data import ImageData, open_data
from mmalign.training.image_difficulty import difficulties
from mmalign.training.image_disk import on_disk, parts_not_needed
from mmalign.training.image_encoding import Encoding, from_encoders
from mmalign.training.image_model import build_adapter, checked_objective, network_dtype
from mmalign.training.image_reference import set_up_denoiser
from mmalign.training.image_rows import ImageBatch, ImageRow, ImageRows, collate
from mmalign.training.image_scores import with_kept_image_scores
from mmalign.training.kept_scores import visits
from mmalign.training.order import Layout
from mmalign.training.picture_rewards import PictureRewards
from mmalign.training.task import TRAIN, RowKey
from mmalign.types import Batch, Scores


class ImageTask:
    """Rows of pictures, a denoiser to train, its reference, and the objective (see ``training.task.Task``).

    Randomness of a row comes from its key alone: streams ``pixels`` (flip, crop), ``caption`` (dropout), ``latents``
    (VAE posterior: the branches in the objective's order, one after the other; candidates in one draw) and ``noise``
    (timestep, then noise, shared by all pictures of the row).
    """

    def __init__(self, config: Config, data: ImageData, components: Components, objective: Objective) -> None:
        """``components``: freshly loaded; the denoiser is made trainable here. Call :meth:`prepare` before scoring."""
        self.objective = objective
        self.data = data
        self.components = components
        self.adapter: DiffusionAdapter | FlowAdapter = build_adapter(components, config.training)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.training.seed)  # LoRA's A is drawn
            reference = set_up_denoiser(components, config, objective)
        self.reference: Reference | None = with_kept_image_scores(reference, config, data, objective.branches)
        self._config = config
        self._rows = ImageRows(data.tables, config.data, data.shapes)
        self._dtype = network_dtype(config)
        self._encoding: Encoding | None = None
        self._layouts: dict[str, Layout] = {}
        self._difficulty: NDArray[np.float64] | None = None
        self._picture_prompts: PromptEmbeddings | None = None
        self._picture_measures: dict[str, float] = {}
        self._picture_rewards: PictureRewards | None = None

    @classmethod
    def from_config(cls, config: Config, data: ImageData | None = None) -> "ImageTask":
        """Check what can be checked, open ``data`` unless it is given, and only then load the weights."""
        objective = checked_objective(config)
        data = data or open_data(config, objective)
        curriculum = config.training.curriculum
        difficulty = None
        if curriculum is not None:
            difficulty = difficulties(data.tables[TRAIN], curriculum.by)
            check_difficulty(difficulty, curriculum)
        rewards = PictureRewards.of(config.evaluation.pictures)
        without = parts_not_needed(config, data, objective.branches)
        task = cls(config, data, load_components(config.model, without=without), objective)
        task._picture_rewards = rewards
        task._difficulty = difficulty
        return task

    @property
    def policy(self) -> nn.Module:
        """The denoiser."""
        return self.components.denoiser

    def size(self, split: str) -> int:
        """Number of rows of a split."""
        return self.data.size(split)

    def layout(self, split: str) -> Layout:
        """Rows of one bucket and one number of candidates go together; ``data.shuffle`` says how they are mixed."""
        if split not in self._layouts:
            self._layouts[split] = self.data.layout(split, self._config.data)
        return self._layouts[split]

    def difficulty(self, by: str) -> NDArray[np.float64]:
        """How hard the training rows are, from their labels (``training.curriculum.by``)."""
        if self._difficulty is None:
            self._difficulty = difficulties(self.data.tables[TRAIN], by)
        return self._difficulty

    def load(self, key: RowKey) -> ImageRow:
        """One row: its pixels, or only its name, caption and labels where latents are cached."""
        return self._encoded_rows().load(key)

    def collate(self, items: Sequence[ImageRow]) -> ImageBatch:
        """Rows as one batch."""
        return collate(items)

    def prepare(self, device: torch.device) -> None:
        """Make latents and text available as ``data.cache`` says, then move the reference to ``device``."""
        config, pictures = self._config, self._config.evaluation.pictures
        if config.data.cache == "disk":
            self._encoding = on_disk(config, self.data, self._rows, self.components, self.objective.branches, device)
        else:
            self._encoding = from_encoders(config, self._rows, self.components, self.objective.branches, device)
        if pictures is not None:
            self._picture_prompts = PromptEmbeddings(
                *self._encoding.prompts(pictures.prompts), *self._encoding.prompts([""])
            )
        move_reference(self.reference, device)

    def score(self, policy: nn.Module, batch: ImageBatch) -> Scores:
        """Scores of the objective's branches; every row draws from its own generators."""
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            encoded = self._encode(batch)
        noise = [key.generator("noise") for key in batch.keys]

        def scores(reference: Reference | None) -> Scores:
            return self.adapter.score(policy, reference, encoded, self.objective.branches, generator=noise)

        if isinstance(self.reference, CachedReference):
            return self.reference.scored(visits(batch.keys), scores)
        return scores(self.reference)

    def keep_reference_scores(self, policy: nn.Module, batch: ImageBatch) -> None:
        """Score ``batch`` with the reference alone and keep what it gives, which :meth:`score` then reads."""
        assert isinstance(self.reference, CachedReference)
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            encoded = self._encode(batch)
        noise = [key.generator("noise") for key in batch.keys]

        def score(module: nn.Module) -> Scores:
            return self.adapter.score(module, None, encoded, self.objective.branches, generator=noise)

        self.reference.keep(visits(batch.keys), policy, score)

    def pictures(self, policy: nn.Module) -> Image | None:
        """The configured prompts side by side, picture i from seed + i, at the resolution that is trained."""
        settings = self._config.evaluation.pictures
        if settings is None or self._picture_prompts is None:
            return None
        with self._sampling(policy) as pipe:
            pictures = generate(
                pipe,
                self._picture_prompts,
                [settings.seed + index for index in range(len(settings.prompts))],
                steps=settings.inference_steps,
                guidance_scale=settings.guidance_scale,
                size=self._config.data.resolution,
            )
        self._picture_measures = picture_measures(pictures)
        if self._picture_rewards is not None:
            self._picture_measures |= self._picture_rewards.mean(settings.prompts, pictures)
        return grid([pictures], column_labels=settings.prompts)

    def picture_measures(self) -> dict[str, float]:
        """Diversity, saturation, ... and rewards of the pictures drawn last; empty before the first."""
        return self._picture_measures

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """LoRA weights for ``pipe.load_lora_weights(folder)``, or a pipeline for ``from_pretrained(folder)``."""
        config = self._config
        with self._sampling(policy):
            save_aligned(self.components, folder, config.model.lora, config.model.name, self._card(results))

    def _encode(self, batch: ImageBatch) -> Batch:
        encoding = self._encoded_rows()
        generators = [key.generator("latents") for key in batch.keys]
        latents: dict[str, Tensor] = {}
        for branch in self.objective.branches:
            mean, std = encoding.moments(batch, branch)
            latents[branch] = draw(mean, std, generators).to(self._dtype)
        text, pooled = encoding.text(batch)
        asks = self.objective.asks
        if "margin" in asks and batch.margin is None:  # only with data.verify: head; otherwise every row was looked at
            raise ValueError(f"the objective asks for a margin, which one of {', '.join(batch.sample_ids)} lacks")
        return Batch(
            latents=latents,
            prompt_embeds=text,
            pooled_embeds=pooled,
            time_ids=batch.time_ids if self.components.kind == "sdxl" else None,
            preference=batch.preference if "preference" in asks else None,
            margin=batch.margin if "margin" in asks else None,
            labels=batch.labels,
            desirable=batch.desirable,
            present=batch.present,
            sample_ids=batch.sample_ids,
        )

    def _encoded_rows(self) -> Encoding:
        if self._encoding is None:
            raise RuntimeError("call prepare(device) before rows are loaded or scored")
        return self._encoding

    @contextmanager
    def _sampling(self, policy: nn.Module) -> Iterator[Any]:
        """The pipeline with ``policy`` (unwrapped; the trained weights or their average) in its place, in eval mode."""
        pipe, key = self.components.pipe, self.components.denoiser_key
        trained, training = getattr(pipe, key), policy.training
        setattr(pipe, key, policy.eval())
        try:
            yield pipe
        finally:
            setattr(pipe, key, trained)
            policy.train(training)

    def _card(self, results: dict[str, Any]) -> Card:
        config, training = self._config, self._config.training
        return Card(
            method=" + ".join(term["loss"] for term in config.objective),
            objective=config.objective,
            settings={
                "steps": training.steps,
                "batch": f"{training.batch_size} x {training.accumulation} accumulated, per process",
                "learning rate": training.learning_rate,
                "optimizer": training.optimizer,
                "schedule": training.schedule,
                "mixed precision": training.mixed_precision,
                "resolution": config.data.resolution,
                "seed": training.seed,
            },
            data=self.data.report,
            results=_measures(results),
        )


def _measures(results: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers of a run worth a line of the model card: steps, and losses and metrics by split."""
    measures: dict[str, Any] = {}
    for name, value in results.items():
        if name in ("training", "held_out"):
            measures |= _measures(value, f"{name.replace('_', ' ')}: ")
        elif isinstance(value, int | float) and name not in ("step", "seconds", "learning_rate"):
            measures[prefix + name.replace("_", " ")] = f"{value:.4g}" if isinstance(value, float) else value
    return measures
