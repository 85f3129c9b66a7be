"""Encoded batches, and the scores that adapters give for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A collated, encoded batch for image generators: everything a denoiser needs except noise and timesteps.

    ``latents``: branch name -> scaled latents [batch, channels, height, width] (``candidates``: [batch, k, ...]).
    ``prompt_embeds``: [batch, tokens, width], shared by the branches of a row. ``pooled_embeds``: [batch, width],
    for SDXL and SD3. ``time_ids``: branch -> [batch, 6] fp32 SDXL micro-conditioning (original height, width, crop top,
    left, target height, width); integers above 256 are not exact in bf16, so they stay fp32.
    ``present``: branch -> [batch] bool, rows that have the branch; a missing entry means every row.
    """

    latents: Mapping[str, Tensor]
    prompt_embeds: Tensor
    pooled_embeds: Tensor | None = None
    time_ids: Mapping[str, Tensor] | None = None
    preference: Float[Tensor, " batch"] | None = None
    margin: Float[Tensor, " batch"] | None = None
    labels: Float[Tensor, " batch k"] | None = None
    desirable: Bool[Tensor, " batch"] | None = None
    present: Mapping[str, Bool[Tensor, " batch"]] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.prompt_embeds.shape[0]


@dataclass(frozen=True)
class BranchScores:
    """Scores of one branch, shape [batch]. ``ref_logp`` is None where no reference was asked for.

    ``mean_logp`` is ``logp / length``; for diffusion both are the same and ``length`` is 1. ``gap``, of diffusion and
    flow models with a reference, is the mean squared difference between the predictions of policy and reference.
    ``token_kl``, of vision-language models where a loss asks for it, sums KL(reference || policy) over the tokens.
    """

    logp: Float[Tensor, " batch"]
    ref_logp: Float[Tensor, " batch"] | None = None
    length: Float[Tensor, " batch"] | None = None
    gap: Float[Tensor, " batch"] | None = None
    token_kl: Float[Tensor, " batch"] | None = None

    @property
    def held(self) -> Tensor:
        """The policy's logp as a constant."""
        return self.logp.detach()

    @property
    def logratio(self) -> Tensor:
        """policy logp - reference logp."""
        if self.ref_logp is None:
            raise ValueError("a log-ratio needs reference scores: pass a reference to adapter.score(...)")
        return self.logp - self.ref_logp

    @property
    def mean_logp(self) -> Tensor:
        """Per-token mean of the policy's logp."""
        return self.logp if self.length is None else self.logp / self.length

    @property
    def mean_logratio(self) -> Tensor:
        """Per-token mean of the log-ratio."""
        return self.logratio if self.length is None else self.logratio / self.length


@dataclass(frozen=True)
class GroupScores(BranchScores):
    """Scores of k candidates per row: every tensor is [batch, k]."""

    logp: Float[Tensor, " batch k"]
    ref_logp: Float[Tensor, " batch k"] | None = None
    length: Float[Tensor, " batch k"] | None = None
    gap: Float[Tensor, " batch k"] | None = None


@dataclass(frozen=True)
class Scores:
    """What an adapter returns: scores per branch, the row's labels, and extras such as ``timestep`` [batch].

    ``scores["chosen@crop"].logratio`` reads any branch. The names that losses ask for are attributes:
    ``{branch}_logratio``, ``{branch}_logp``, ``{branch}_mean_logp``, ``{branch}_length``, ``ref_{branch}_logp`` for the
    plain branches (``scores.chosen_logratio``, ``scores.ref_rejected_logp``).
    """

    branches: Mapping[str, BranchScores]
    preference: Float[Tensor, " batch"] | None = None
    margin: Float[Tensor, " batch"] | None = None
    labels: Float[Tensor, " batch k"] | None = None
    desirable: Bool[Tensor, " batch"] | None = None
    present: Mapping[str, Bool[Tensor, " batch"]] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, branch: str) -> BranchScores:
        try:
            return self.branches[branch]
        except KeyError:
            raise KeyError(f"no branch {branch!r} was scored; scored branches: {sorted(self.branches)}") from None

    def __getattr__(self, name: str) -> Tensor:
        # Only called for names that are not fields, such as chosen_logratio or ref_rejected_logp.
        if name.startswith("__") or "branches" not in self.__dict__:
            raise AttributeError(name)
        if name in self.extras:
            return self.extras[name]
        if name.startswith("ref_") and name.endswith("_logp"):
            reference = self.branches.get(name[4:-5])
            if reference is not None and reference.ref_logp is not None:
                return reference.ref_logp
        for suffix in ("mean_logratio", "logratio", "mean_logp", "logp", "length", "gap"):
            branch = name.removesuffix("_" + suffix)
            if branch != name and branch in self.branches:
                value = getattr(self.branches[branch], suffix)
                if value is None and suffix == "gap":
                    raise AttributeError(f"{name}: only diffusion and flow adapters with a reference give a gap")
                return torch.ones_like(self.branches[branch].logp) if value is None else value
        known = f"branches: {sorted(self.branches)}, extras: {sorted(self.extras)}"
        raise AttributeError(f"scores have no {name!r}; {known}")
