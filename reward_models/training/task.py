"""A CLIP that learns which of two pictures people prefer, as the trainer sees it (``training.task.Task``)."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import save_file
from torch import nn

from mmalign.losses import Objective
from mmalign.references import Reference
from mmalign.training.config import Config
from mmalign.training.image_data import ImageData
from mmalign.training.order import Layout
from mmalign.training.task import RowKey
from mmalign.types import CHOSEN, REJECTED, BranchScores, Scores
from reward_models.clip_folder import COPIED, SETTINGS, ClipFolder
from reward_models.training.rows import RewardBatch, RewardRow, RewardRows, collate
from reward_models.training.scorer import ClipScorer, load_scorer, make_trainable, merged_state


class RewardTask:
    """Pairs of pictures, a CLIP to train, and the objective. There is no reference: the score itself is the reward.

    Nothing about a row is random.
    """

    reference: Reference | None = None

    def __init__(self, config: Config, data: ImageData, found: ClipFolder, objective: Objective) -> None:
        """Loads the weights of ``found`` and makes them trainable as ``config`` says."""
        assert config.reward is not None
        self.objective, self.data = objective, data
        self._config, self._found = config, found
        self._scorer = load_scorer(found)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.training.seed)  # LoRA's A is drawn
            make_trainable(self._scorer, config.model.lora, config.reward)
        self._rows = RewardRows(
            data.tables,
            found.tokens(),
            found.preprocess(config.reward.fit),
            check=config.data.verify == "head",
        )

    @property
    def policy(self) -> nn.Module:
        """The scorer."""
        return self._scorer

    def size(self, split: str) -> int:
        """Number of rows of a split."""
        return self.data.size(split)

    def layout(self, split: str) -> Layout:
        """How ``data.shuffle`` mixes rows."""
        return self.data.layout(split, self._config.data)

    def load(self, key: RowKey) -> RewardRow:
        """One pair: token ids and pixels."""
        return self._rows.load(key)

    def collate(self, items: Sequence[RewardRow]) -> RewardBatch:
        """Rows as one batch."""
        return collate(items)

    def prepare(self, device: torch.device) -> None:
        """Nothing beside the policy has to be moved."""

    def score(self, policy: nn.Module, batch: RewardBatch) -> Scores:
        """The rewards of both pictures, as the ``logp`` of their branches."""
        asks = self.objective.asks
        if "margin" in asks and batch.margin is None:  # only with data.verify: head; otherwise every row was looked at
            raise ValueError(f"the objective asks for a margin, which one of {', '.join(batch.sample_ids)} lacks")
        rewards = policy(batch.ids, batch.pixels)
        return Scores(
            {CHOSEN: BranchScores(rewards[:, 0]), REJECTED: BranchScores(rewards[:, 1])},
            # Without a loss that asks, a soft label was trained on as a hard one, and calibration is measured likewise.
            preference=batch.preference if "preference" in asks else None,
            margin=batch.margin if "margin" in asks else None,
            present=batch.present,
        )

    def pictures(self, policy: nn.Module) -> Image | None:  # noqa: ARG002 - the trainer's interface
        """None: a reward model draws nothing."""
        return None

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """A plain CLIP of transformers (LoRA merged), its tokenizer, ``reward.json``, and a README."""
        assert isinstance(policy, ClipScorer)
        assert self._config.reward is not None
        folder.mkdir(parents=True)
        state = merged_state(policy)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(self._found.config_file, folder / "config.json")
        for name in COPIED:
            if (self._found.folder / name).is_file():
                shutil.copyfile(self._found.folder / name, folder / name)
        settings = {
            "base": self._found.name,
            "fit": self._config.reward.fit,
            "version": f"step {results['exported_step']}, {state['logit_scale'].exp():.6g} * cosine",
            "objective": self._config.objective,
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(self._readme(folder, results), encoding="utf-8")

    def _readme(self, folder: Path, results: Mapping[str, Any]) -> str:
        config, training = self._config, self._config.training
        method = " + ".join(str(term["loss"]) for term in config.objective)
        measured = {f"held out: {name}": value for name, value in dict(results.get("held_out", {})).items()}
        measured |= {f"training: {name}": value for name, value in dict(results.get("training", {})).items()}
        lines = [f"| {name} | {value:.4g} |" for name, value in measured.items() if isinstance(value, float)]
        rows = training.batch_size * training.accumulation
        return "\n".join(
            [
                f"# {config.model.name}, a reward model trained with {method}",
                "",
                "Score = exp(logit_scale) * cos(text, picture); sigma of the difference of two scores of one prompt is",
                "the probability that the first picture is preferred. Scores of different prompts, and of other",
                "reward models, cannot be compared.",
                "",
                "```python",
                "from mmalign.rewards import find_reward",
                f"reward = find_reward('clip-reward', weights={str(folder)!r})",
                "scores = reward.score(['a prompt'], [image])",
                "```",
                "",
                f"{training.steps} steps of {rows} pairs per process, learning rate {training.learning_rate:g}, "
                f"pictures: {config.reward.fit if config.reward else ''}. {self.data.report}",
                "",
                "| measure | value |",
                "|---|---|",
                *lines,
                "",
                "Made with mmalign. The licence of the base model applies.",
                "",
            ]
        )
