"""Vision-language models with pairs of responses, as the trainer sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import nn

from mmalign.adapters import VLMAdapter, VLMPolicy
from mmalign.losses import Objective
from mmalign.models import Card
from mmalign.models.lora import modules_in_full
from mmalign.models.vlm import VLMComponents, freeze_parts, load_vlm, lora_layers_of
from mmalign.models.vlm_export import save_vlm
from mmalign.references import CachedReference, Reference, move_reference
from mmalign.training.config import Config
from mmalign.training.image_reference import set_up_denoiser
from mmalign.training.kept_scores import visits
from mmalign.training.task import RowKey
from mmalign.training.vlm_branches import branches_of, checked_vlm_objective
from mmalign.training.vlm_data import VLMData, open_vlm_data
from mmalign.training.vlm_kept import with_kept_vlm_scores
from mmalign.training.vlm_rows import FRAMES, VLMItem, VLMRowBatch, VLMRows
from mmalign.types import Scores


@dataclass(frozen=True)
class _Denoiser:
    """The one thing that setting up LoRA and reference asks of a family's components."""

    denoiser: nn.Module


class VLMTask:
    """Rows of conversations, a model to train, its reference, and the objective (see ``training.task.Task``).

    Randomness of a row comes from its key alone: one stream per corruption and picture.
    """

    def __init__(self, config: Config, data: VLMData, components: VLMComponents, objective: Objective) -> None:
        """``components``: freshly loaded; the model is made trainable here."""
        assert config.vlm is not None
        self.objective, self.data, self.components = objective, data, components
        self.adapter = VLMAdapter(
            config.vlm.pack,
            row_tokens=config.vlm.row_tokens,
            token_kl=objective.token_kl_branches,
            held=objective.held_branches,
        )
        self._config = config
        self._policy = VLMPolicy(components.model)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.training.seed)  # LoRA's A is drawn
            reference = set_up_vlm(self._policy, components, config, objective)
        self.reference: Reference | None = with_kept_vlm_scores(
            reference, config, data.fingerprint, objective.branches, components.processor
        )
        self._rows = rows_of(config, data, components, self.adapter, objective)

    @classmethod
    def from_config(cls, config: Config, data: VLMData | None = None) -> "VLMTask":
        """Check what can be checked, open ``data`` unless it is given, and only then load the weights."""
        assert config.vlm is not None
        objective = checked_vlm_objective(config)
        data = data or open_vlm_data(config, objective)
        return cls(config, data, _load(config), objective)

    @property
    def policy(self) -> nn.Module:
        """The model, wrapped so that its forward gives log-probs."""
        return self._policy

    def size(self, split: str) -> int:
        """Number of rows of a split."""
        return self.data.size(split)

    def load(self, key: RowKey) -> VLMItem:
        """One row, decoded, corrupted where a branch asks for it, and tokenised."""
        return self._rows.load(key)

    def collate(self, items: Sequence[VLMItem]) -> VLMRowBatch:
        """Rows as one batch."""
        return self._rows.collate(items)

    def prepare(self, device: torch.device) -> None:
        """Move the reference to ``device``."""
        move_reference(self.reference, device)

    def score(self, policy: nn.Module, batch: VLMRowBatch) -> Scores:
        """Scores of the objective's branches."""

        def scores(reference: Reference | None) -> Scores:
            return self.adapter.score(policy, reference, batch.batch, self.objective.branches)

        if isinstance(self.reference, CachedReference):
            return self.reference.scored(visits(batch.keys), scores, batch.marks)
        return scores(self.reference)

    def keep_reference_scores(self, policy: nn.Module, batch: VLMRowBatch) -> None:
        """Score ``batch`` with the reference alone and keep what it gives, which :meth:`score` then reads."""
        assert isinstance(self.reference, CachedReference)
        compared = [branch for branch in self.objective.branches if branch not in self.adapter.held]

        def score(module: nn.Module) -> Scores:
            return self.adapter.score(module, None, batch.batch, compared)

        self.reference.keep(visits(batch.keys), policy, score, batch.marks)

    def pictures(self, policy: nn.Module) -> Image | None:  # noqa: ARG002 - the trainer's interface
        """None: these models answer in words."""
        return None

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:  # noqa: ARG002
        """A PEFT adapter, or all weights, for plain transformers."""
        training = self._config.training
        measures = {
            f"{split} {name}".strip(): f"{value:.4g}"
            for split, of_split in (("", results), *((k, v) for k, v in results.items() if isinstance(v, dict)))
            for name, value in of_split.items()
            if isinstance(value, float) and name not in ("seconds", "learning_rate")
        }
        settings = {
            "steps": training.steps,
            "batch": f"{training.batch_size} x {training.accumulation} accumulated, per process",
            "learning rate": training.learning_rate,
            "schedule": training.schedule,
            "mixed precision": training.mixed_precision,
            "seed": training.seed,
        }
        method = " + ".join(term["loss"] for term in self._config.objective)
        card = Card(method, self._config.objective, settings, self.data.report, measures)
        lora = self._config.model.lora
        in_full = modules_in_full(self.components.model, lora) if lora is not None else []
        save_vlm(self.components, folder, card, in_full=in_full)


def rows_of(
    config: Config, data: VLMData, components: VLMComponents, adapter: VLMAdapter, objective: Objective
) -> VLMRows:
    """What decodes, corrupts and tokenises the run's rows; the model's weights are not read."""
    assert config.vlm is not None
    return VLMRows(
        data.tables,
        components,
        adapter,
        branches_of(objective, config.vlm),
        max_length=config.vlm.max_length,
        seed=config.training.seed,
        frames=config.vlm.frames or FRAMES,
        changed_weight=config.vlm.changed_weight,
    )


def _load(config: Config) -> VLMComponents:
    assert config.vlm is not None
    vlm = config.vlm
    return load_vlm(config.model, attention=vlm.attention, min_pixels=vlm.min_pixels, max_pixels=vlm.max_pixels)


def set_up_vlm(policy: VLMPolicy, components: VLMComponents, config: Config, objective: Objective) -> Reference | None:
    """Make the model trainable, as far as ``vlm.freeze`` lets it, and give its reference."""
    assert config.vlm is not None
    model, parts, freeze = components.model, components.info.parts, config.vlm.freeze
    chosen = config.model
    if chosen.lora is not None:
        chosen = chosen.model_copy(update={"lora": lora_layers_of(model, chosen.lora, freeze, parts)})
    adapted = config.model_copy(update={"model": chosen})
    reference = set_up_denoiser(cast(Any, _Denoiser(policy)), adapted, objective)
    if chosen.lora is None:
        freeze_parts(model, freeze, parts)
    return reference
