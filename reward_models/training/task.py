"""A CLIP that learns which pictures people prefer, as the trainer sees it (``training.task.Task``)."""

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
from mmalign.training.task import TRAIN, RowKey
from mmalign.types import Scores
from reward_models.clip_folder import COPIED, HEAD, SETTINGS, ClipFolder
from reward_models.heads import READ_LOGITS, SCALES
from reward_models.heads.general import GeneralHead
from reward_models.heads.terms import list_scores, pair_scores
from reward_models.training.labels import read_labels
from reward_models.training.rows import RewardBatch, RewardRow, RewardRows, collate
from reward_models.training.scorer import ClipScorer, asked, head_settings, load_scorer, make_trainable, merged_state


class RewardTask:
    """Pairs or rankings of pictures, a CLIP with its head to train, and the objective.

    There is no reference: the score itself is the reward.

    Nothing about a row is random.
    """

    reference: Reference | None = None

    def __init__(self, config: Config, data: ImageData, found: ClipFolder, objective: Objective) -> None:
        """Reads users and dimensions where the head needs them, loads the weights of ``found`` and makes them trainable
        as ``config`` says. ValueError for rows that lack what the head needs."""
        assert config.reward is not None
        self.objective, self.data = objective, data
        self._config, self._found = config, found
        labels = read_labels(data.tables, config.reward.head)
        self._users = tuple(labels.users)
        self._head = head_settings(config.reward.head, objective, len(self._users))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.training.seed)  # LoRA's A and the head are drawn
            self._scorer = load_scorer(found, self._head)
            make_trainable(self._scorer, config.model.lora, config.reward, asked(objective))
        self._rows = RewardRows(
            data.tables,
            found.tokens(),
            found.preprocess(config.reward.fit),
            labels=labels,
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
        """The rewards of all pictures, as the ``logp`` of their branches, and what else the head gives."""
        asks = self.objective.asks
        if "margin" in asks and batch.margin is None:  # only with data.verify: head; otherwise every row was looked at
            raise ValueError(f"the objective asks for a margin, which one of {', '.join(batch.sample_ids)} lacks")
        given = policy(batch.ids, batch.pixels, batch.users)
        if batch.labels is not None:
            return list_scores(given, batch.labels, batch.present)
        return pair_scores(
            given,
            # Without a loss that asks, a soft label was trained on as a hard one, and calibration is measured likewise.
            preference=batch.preference if "preference" in asks else None,
            margin=batch.margin if "margin" in asks else None,
            part_preference=batch.parts,
            present=batch.present,
        )

    def pictures(self, policy: nn.Module) -> Image | None:  # noqa: ARG002 - the trainer's interface
        """None: a reward model draws nothing."""
        return None

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """A plain CLIP of transformers (LoRA merged), its tokenizer, the head, ``reward.json``, and a README."""
        assert isinstance(policy, ClipScorer)
        assert self._config.reward is not None
        folder.mkdir(parents=True)
        state = merged_state(policy)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(self._found.config_file, folder / "config.json")
        for name in COPIED:
            if (self._found.folder / name).is_file():
                shutil.copyfile(self._found.folder / name, folder / name)
        if isinstance(policy.head, GeneralHead):
            self._choose_opponents(policy, policy.head)
        kind = self._config.reward.head.kind
        if kind != "cosine":
            weights = {name: value.cpu().contiguous() for name, value in policy.head.state_dict().items()}
            save_file(weights, folder / HEAD)
        of = f"{state['logit_scale'].exp():.6g} * cosine" if kind in READ_LOGITS else "features of prompt and picture"
        settings = {
            "reward": "clip-reward",
            "base": self._found.name,
            "fit": self._config.reward.fit,
            "version": f"step {results['exported_step']}, {kind} of {of}",
            "objective": self._config.objective,
            "head": self._head,
            "users": list(self._users),
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(self._readme(folder, results), encoding="utf-8")

    @torch.no_grad()
    def _choose_opponents(self, policy: ClipScorer, head: GeneralHead) -> None:
        """The pictures of the first rows to train on; over again where there are too few."""
        stored = head.get_buffer("opponents")
        rows = range(min(len(stored) // 2, self.size(TRAIN)))
        loaded = [row for row in map(self._rows.load, (RowKey(TRAIN, row, 0) for row in rows)) if not row.unusable]
        features = policy.image_features(torch.cat([row.pixels for row in loaded]).to(stored.device))
        stored.copy_(features[torch.arange(len(stored)) % len(features)])

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
                SCALES[config.reward.head.kind if config.reward else "cosine"] + ".",
                "Scores of different prompts, and of other reward models, cannot be compared.",
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
