"""Rewards that ``mmalign train`` made with a head: Gaussian, several dimensions, users, general preferences."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmalign.losses import Objective
from reward_models.cosine import CosineReward, check_lengths
from reward_models.heads import OF_USERS, nobody
from reward_models.heads.terms import pair_scores
from reward_models.heads.users import FASTER, UserWeights
from reward_models.losses import gaussian_probability
from reward_models.noise_losses import mixture_bradley_terry


@dataclass
class HeadReward:
    """A CLIP (``cosine``: its towers, words and preprocessing) under ``head``, of this ``kind``.

    ``users``: name -> number, of heads for users; ``user``: whose taste the scores are, None: everybody's mean weights.
    ``objective``: what the run was trained with. Calls are those of every reward; beside them ``compare``, ``details``
    and, for heads for users, ``for_user`` and ``new_user``.
    """

    cosine: CosineReward
    head: nn.Module
    kind: str
    objective: Sequence[Mapping[str, Any]]
    users: Mapping[str, int] = field(default_factory=dict)
    user: str | None = None
    name: str = field(init=False)
    scale: str = field(init=False)
    version: str = field(init=False)
    licence: str = field(init=False)
    source: str = field(init=False)
    prompt_limit: int | None = field(init=False)
    backbone: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("name", "scale", "version", "licence", "source", "prompt_limit", "backbone"):
            setattr(self, name, getattr(self.cosine, name))
        if self.user is not None:
            if self.user not in self.users:
                known = ", ".join([*self.users][:10]) or f"a {self.kind} head has none"
                raise ValueError(f"user {self.user!r} has no rows in the run of {self.source}; users: {known}")
            self.version += f", user {self.user}"

    def prompt_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt; what is beyond ``prompt_limit`` does not count."""
        return self.cosine.prompt_tokens(prompts)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Scores of PIL pictures, in batches."""
        check_lengths(prompts, images)
        with torch.no_grad():
            return self.score_embedded(prompts, self.embed(images))

    def score_tensor(
        self, prompts: Sequence[str], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Scores of pictures with values in 0..1; gradients reach the pixels."""
        check_lengths(prompts, images)
        return self.score_embedded(prompts, self.cosine.towers.embed_tensor(images, self.cosine.preprocess))

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch width"]:
        """Image features, not normalised."""
        return self.cosine.embed(images)

    def score_embedded(self, prompts: Sequence[str], embedded: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Scores of embedded pictures."""
        check_lengths(prompts, embedded)
        if not prompts:
            return embedded.new_zeros(0)
        return self._given(prompts, embedded[:, None])["score"][:, 0]

    def details(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the head says beside ``score``: ``std`` [batch], ``parts`` [batch, dimensions or groups], ... by name.

        ``parts`` of dimensions are in the order of ``head.names``.
        """
        check_lengths(prompts, images)
        with torch.no_grad():
            given = self._given(prompts, self.embed(images)[:, None])
        per_row = ("part_weights", "ideal_point", "ideal_direction", "score_scale", "part_log_variance")
        return {name: value if name in per_row else value[:, 0] for name, value in given.items()}

    def compare(
        self, prompts: Sequence[str], left: Sequence[Image.Image], right: Sequence[Image.Image]
    ) -> Float[Tensor, " batch"]:
        """log p / (1 - p), p the probability that left is preferred: the logit the model was trained with.

        A Gaussian head and a mixture average p over what they are unsure about. PAL-A has no probability: minus the
        distance of left plus that of right.
        """
        check_lengths(prompts, left)
        check_lengths(prompts, right)
        with torch.no_grad():
            given = self._given(prompts, torch.stack([self.embed(left), self.embed(right)], dim=1))
            score, std, parts = given["score"], given.get("std"), given.get("parts")
            if std is not None:
                p = gaussian_probability(score[:, 0], score[:, 1], std[:, 0], std[:, 1])
                return torch.logit(p, eps=torch.finfo(p.dtype).eps)
            if parts is not None and "part_weights" in given:
                wins = -mixture_bradley_terry(parts[:, 0], parts[:, 1], given["part_weights"])
                return wins + mixture_bradley_terry(parts[:, 1], parts[:, 0], given["part_weights"])
            return score[:, 0] - score[:, 1]

    def for_user(self, user: str) -> "HeadReward":
        """The same model with the taste of a user of the run."""
        return replace(self, user=user)

    def new_user(
        self,
        prompts: Sequence[str],
        chosen: Sequence[Image.Image],
        rejected: Sequence[Image.Image],
        *,
        name: str = "new user",
        steps: int = 100,
        learning_rate: float = 0.1,
    ) -> "HeadReward":
        """The model for somebody it never saw, from a few pairs: learns that user's weights and nothing else (PAL).

        Adam over all pairs at once, on the run's objective, from everybody's mean weights. The model that this is
        called on stays as it is. ValueError for a head without users, no pairs, or a name that is taken.
        """
        if self.kind not in OF_USERS:
            raise ValueError(f"a {self.kind} head knows no users; train with reward.head.kind: {' | '.join(OF_USERS)}")
        if name in self.users:
            raise ValueError(f"user {name!r} is one of the run; use for_user({name!r})")
        if not prompts:
            raise ValueError("a new user needs at least one pair of pictures to be known by")
        check_lengths(prompts, chosen)
        check_lengths(prompts, rejected)
        images = torch.stack([self.embed(chosen), self.embed(rejected)], dim=1)
        head = copy.deepcopy(self.head)
        weights = cast(UserWeights, head.get_submodule("user_weights"))
        logits = self._fitted(prompts, images, weights, steps, learning_rate)
        number = weights.with_another(logits)
        return replace(self, head=head, users={**self.users, name: number}, user=name)

    def _fitted(
        self, prompts: Sequence[str], images: Tensor, known: UserWeights, steps: int, learning_rate: float
    ) -> Tensor:
        """Logits of the new user's weights."""
        objective, many = Objective(self.objective), len(known.logits)
        users = torch.full((len(prompts),), many, device=images.device)
        logits = known(nobody(1, images.device))[0].log().detach().requires_grad_(True)
        optimizer = torch.optim.Adam([logits], lr=learning_rate)
        ones, text = images.new_ones(len(prompts)), self.cosine.embed_prompts(prompts)
        for _ in range(steps):
            rows = {"user_weights.logits": torch.cat([known.logits, logits[None] / FASTER])}
            given = self._judged(text, images, users, rows)
            optimizer.zero_grad()
            objective(pair_scores(given, preference=ones, margin=torch.zeros_like(ones))).loss.backward()
            optimizer.step()
        return logits.detach()

    def _given(self, prompts: Sequence[str], images: Float[Tensor, "batch k width"]) -> dict[str, Tensor]:
        """The head's outputs for k pictures of each prompt."""
        users = nobody(len(prompts), images.device)
        if self.user is not None:
            users = torch.full_like(users, self.users[self.user])
        return self._judged(self.cosine.embed_prompts(prompts), images, users, {})

    def _judged(self, text: Tensor, images: Tensor, users: Tensor, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head's outputs, with ``other`` in the place of its own parameters of these names."""
        images = normalize(images, dim=-1)
        logits = self.cosine.towers.scale * (text[:, None] * images).sum(dim=-1)
        return torch.func.functional_call(self.head, dict(other), (text, images, logits, users))
