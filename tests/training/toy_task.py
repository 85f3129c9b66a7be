"""The smallest task there is: a linear policy that scores feature vectors. It stands for every modality."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmalign.losses import Objective
from mmalign.references import FrozenReference
from mmalign.training.config import Config
from mmalign.training.task import TRAIN, RowKey
from mmalign.types import BranchScores, Scores

DIM = 6
DPO = {"loss": "dpo", "beta": 0.5}


def config(
    output: Path, *, objective: Sequence[dict] = (DPO,), evaluation: dict | None = None, **training: Any
) -> Config:
    """A run of a few steps."""
    training = {"steps": 6, "batch_size": 4, "learning_rate": 0.05, **training}
    return Config.model_validate(
        {
            "model": {"name": "toy"},
            "data": {"source": "toy", "path": "toy", "held_out": 0.2 if evaluation and "every" in evaluation else 0.0},
            "objective": list(objective),
            "training": training,
            "evaluation": evaluation or {},
            "output": str(output),
        }
    )


@dataclass(frozen=True)
class ToyBatch:
    keys: tuple[RowKey, ...]
    sample_ids: tuple[str, ...]
    chosen: Tensor
    rejected: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "ToyBatch":
        present = {branch: mask.to(device) for branch, mask in self.present.items()}
        return replace(self, chosen=self.chosen.to(device), rejected=self.rejected.to(device), present=present)


class ToyPolicy(nn.Module):
    def __init__(self, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.frozen = nn.Linear(DIM, DIM, dtype=dtype).requires_grad_(False)
        self.trained = nn.Linear(DIM, 1, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        prediction = self.trained(self.dropout(torch.tanh(self.frozen(features)))).squeeze(-1)
        return -0.5 * (prediction - 1) ** 2  # like a diffusion score, so that no parameter cancels in a margin


class ToyTask:
    """Chosen features lean one way; every visit adds its own noise. ``lacking``: rows without a rejected side."""

    def __init__(
        self,
        objective: Sequence[dict] = (DPO,),
        *,
        rows: int = 10,
        held_out: int = 5,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        lacking: bool = False,
        poisoned: Sequence[int] = (),
        weights_seed: int = 0,
    ) -> None:
        torch.manual_seed(weights_seed)
        self.policy = ToyPolicy(dropout, dtype)
        self.objective = Objective(objective)
        self.reference = FrozenReference(self.policy) if self.objective.needs_reference else None
        self.rows, self.n_held_out, self.dtype = rows, held_out, dtype
        self.lacking, self.poisoned = lacking, poisoned
        self.visits: list[RowKey] = []
        self.drawn: list[Tensor] = []
        self.exported: dict[str, Any] | None = None

    def size(self, split: str) -> int:
        return self.rows if split == TRAIN else self.n_held_out

    def load(self, key: RowKey) -> tuple[RowKey, Tensor]:
        of_row = torch.Generator().manual_seed(key.index + (0 if key.split == TRAIN else 1000))
        features = torch.randn(2, DIM, generator=of_row)
        features[0, 0] += 1.0
        features += 0.1 * torch.randn(2, DIM, generator=key.generator("noise"))
        if key.split == TRAIN and key.index in self.poisoned:
            features[1, 0] = float("nan")
        return key, features.to(self.dtype)

    def collate(self, items: Sequence[tuple[RowKey, Tensor]]) -> ToyBatch:
        keys = tuple(key for key, _ in items)
        features = torch.stack([features for _, features in items])
        present = {"rejected": torch.tensor([key.index % 3 != 0 for key in keys])} if self.lacking else {}
        names = tuple(f"{key.split}-{key.index}" for key in keys)
        return ToyBatch(keys, names, features[:, 0], features[:, 1], present)

    def prepare(self, device: torch.device) -> None:
        if self.reference is not None:
            self.reference.to(device)

    def score(self, policy: nn.Module, batch: ToyBatch) -> Scores:
        self.visits += batch.keys
        features = {"chosen": batch.chosen, "rejected": batch.rejected}
        both = torch.cat([features[branch] for branch in self.objective.branches])
        own = policy(both).chunk(len(self.objective.branches))
        reference = [None] * len(own)
        if self.reference is not None:
            with torch.no_grad(), self.reference.using(policy) as module:
                reference = module(both).chunk(len(own))
        branches = {
            branch: BranchScores(logp, ref_logp)
            for branch, logp, ref_logp in zip(self.objective.branches, own, reference, strict=True)
        }
        timestep = torch.tensor([float(key.seed % 1000) for key in batch.keys])
        return Scores(branches, present=batch.present, extras={"timestep": timestep})

    def pictures(self, policy: nn.Module) -> Image.Image | None:
        self.drawn.append(policy.trained.weight.detach().clone())
        return Image.new("RGB", (4, 4))

    def export(self, policy: nn.Module, folder: Path, results: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        torch.save(policy.state_dict(), folder / "policy.pt")
        self.exported = results
