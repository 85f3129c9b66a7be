"""An objective: a weighted sum of losses over named branches, averaged over the rows that have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.losses import BATCH_COUPLED
from mmalign.losses.auto_beta import MULTIPLIED, AutoBeta
from mmalign.losses.numerics import full_precision
from mmalign.losses.running import ESTIMATES, Estimate, Reduce
from mmalign.losses.terms import Term, parse_terms
from mmalign.types import CHOSEN, REJECTED, Scores

# Losses that are fitted, in one way or another, to P(chosen wins) = sigma(beta * margin of log-ratios).
BRADLEY_TERRY = ("dpo", "soft_dpo", "robust_dpo", "exo", "dpo_positive", "nca")


@dataclass(frozen=True)
class ObjectiveOutput:
    """``loss``: the scalar to back-propagate. ``term_losses``: name -> [batch] losses before coefficient and average.

    Rows that lack a term's branches are 0 there; divide sums by :meth:`Objective.counts`, not by the batch size.
    """

    loss: Float[Tensor, ""]
    term_losses: dict[str, Tensor]


class Objective:
    """sum_t coefficient_t * sum_rows(loss_t) / counts_t.

    ``terms``: mappings as in a config, e.g. ``{"loss": "dpo", "beta": 5000}``. A term's own keys are ``loss``, its
    branch keys (default: the branch of the same name), ``coefficient`` (1) and ``score`` (``sum``, or ``mean`` for
    per-token log-ratios and log-probs); every other key is a keyword of the loss. All mistakes are raised as one
    ValueError. ``shift: running`` and ``kl: running`` make the objective keep the estimate (see ``running.py``), and so
    does ``beta: auto`` (see ``auto_beta.py``), for which :meth:`end_step` is to be called after every optimizer step.
    Set ``reduce`` to an all-reduce sum when there are several processes.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        self.terms: tuple[Term, ...] = parse_terms(terms)
        self.names = _unique_names(self.terms)
        self.training = True
        self.reduce: Reduce = _identity
        self._estimates: dict[tuple[int, str], Estimate] = {
            (index, key): ESTIMATES[term.loss_name][key][0]()
            for index, term in enumerate(self.terms)
            for key in term.running
        }
        self._betas = {index: AutoBeta(term.auto_beta) for index, term in enumerate(self.terms) if term.auto_beta}

    @property
    def branches(self) -> tuple[str, ...]:
        """Every branch that a term reads, once: what ``adapter.score`` has to score."""
        return tuple(dict.fromkeys(branch for term in self.terms for branch in term.branches.values()))

    @property
    def needs_reference(self) -> bool:
        """Whether any term reads a reference score."""
        return any(term.signature.needs_reference for term in self.terms)

    @property
    def held_branches(self) -> tuple[str, ...]:
        """Branches of which every term reads the log-prob as a constant: no gradient and no reference is needed."""
        return tuple(branch for branch in self.branches if self._quantities(branch) <= {"held", "length"})

    @property
    def token_kl_branches(self) -> tuple[str, ...]:
        """Branches of which some term reads the KL of every token's distribution."""
        return tuple(branch for branch in self.branches if "token_kl" in self._quantities(branch))

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        """Terms that read scores of a reward model, by name."""
        return tuple(name for name, term in zip(self.names, self.terms, strict=True) if term.signature.reads_rewards)

    @property
    def asks(self) -> frozenset[str]:
        """Row labels that some term asks for: of preference, margin, labels and desirable."""
        return frozenset[str]().union(*(term.signature.row_fields for term in self.terms))

    @property
    def batch_coupled(self) -> tuple[str, ...]:
        """Terms whose rows depend on each other: for them accumulation over micro-batches is not the large batch."""
        always = BATCH_COUPLED.keys() - ESTIMATES.keys()
        return tuple(
            name for name, term in zip(self.names, self.terms, strict=True) if term.running or term.loss_name in always
        )

    @property
    def reward_beta(self) -> float | Tensor | None:
        """beta of the first term that takes sigma(beta * margin) for the probability that chosen wins, or None.

        Scores of reward models are logits: 1.
        """
        for index, term in enumerate(self.terms):
            if term.signature.reads_rewards and dict(term.branches) == {CHOSEN: CHOSEN, REJECTED: REJECTED}:
                return 1.0
            if term.loss_name in BRADLEY_TERRY and dict(term.branches) == {CHOSEN: CHOSEN, REJECTED: REJECTED}:
                return self._betas[index].value if index in self._betas else float(term.keywords["beta"])
        return None

    def counts(self, present: Mapping[str, Bool[Tensor, " batch"]], size: int) -> Tensor:
        """Rows [terms] that each term averages over, in a batch of ``size`` rows with these branches ``present``."""
        masks = [term.rows(present) for term in self.terms]
        device = next((mask.device for mask in masks if mask is not None), torch.device("cpu"))
        counts = [torch.full((), size, device=device) if mask is None else mask.sum() for mask in masks]
        return torch.stack(counts)

    def __call__(self, scores: Scores, *, counts: Tensor | None = None) -> ObjectiveOutput:
        """The loss of these scores; ``counts`` [terms] are the rows of the whole optimizer step where it is larger.

        Rows without a term's branches are selected away, which synchronises with the device; batches without
        ``scores.present`` never do.
        """
        if counts is None:
            counts = self.counts(scores.present, _rows_in(scores))
        term_losses = {}
        total: Tensor | float = 0.0
        for index, (name, term) in enumerate(zip(self.names, self.terms, strict=True)):
            rows = self._evaluate(index, term, scores)
            term_losses[name] = rows
            total = total + term.coefficient * rows.sum() / counts[index].clamp(min=1)
        assert isinstance(total, Tensor)
        return ObjectiveOutput(loss=total, term_losses=term_losses)

    def train(self, mode: bool = True) -> "Objective":
        """Running estimates are updated in training and frozen in evaluation."""
        self.training = mode
        return self

    def end_step(self) -> None:
        """The optimizer step is over: estimates that change between steps take in what it saw. Collective."""
        for beta in self._betas.values():
            beta.end_step(self.reduce)

    def estimates(self) -> dict[str, Tensor]:
        """Estimates as they are now, scalars by name: ``beta_dpo``, ``shift_bco_pair``, ``kl_kto``."""
        running = {f"{key}_{self.names[index]}": estimate.value for (index, key), estimate in self._estimates.items()}
        return running | {f"beta_{self.names[index]}": beta.value for index, beta in self._betas.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The running estimates, keyed ``term.keyword.value``; empty without any."""
        return {
            f"{index}.{key}.{name}": value
            for (index, key), estimate in self._all_estimates.items()
            for name, value in estimate.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over running estimates; ValueError where the saved objective had other ones."""
        if state.keys() != self.state_dict().keys():
            expected, given = sorted(self.state_dict()), sorted(state)
            raise ValueError(f"saved estimates {given} are not those of this objective {expected}; was it changed?")
        for (index, key), estimate in self._all_estimates.items():
            prefix = f"{index}.{key}."
            estimate.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _quantities(self, branch: str) -> frozenset[str]:
        """What the terms read of a branch."""
        read = [
            term.signature.quantities_of(key)
            for term in self.terms
            for key, name in term.branches.items()
            if name == branch
        ]
        return frozenset[str]().union(*read)

    @property
    def _all_estimates(self) -> dict[tuple[int, str], Estimate | AutoBeta]:
        return {**self._estimates, **{(index, "beta"): beta for index, beta in self._betas.items()}}

    def _evaluate(self, index: int, term: Term, scores: Scores) -> Tensor:
        """Losses [batch] of one term, 0 for the rows that lack its branches."""
        try:
            tensors = term.tensors(scores)
        except (ValueError, KeyError) as error:
            raise ValueError(f"objective.{index} ({term.loss_name}): {error.args[0]}") from None
        mask = term.rows(scores.present)
        if mask is not None:
            tensors = {name: value[mask] for name, value in tensors.items()}
        keywords = dict(term.keywords)
        for key in term.running:
            estimate, values = self._estimates[index, key], ESTIMATES[term.loss_name][key][1]
            if self.training:
                estimate.update(values(tensors, keywords), self.reduce)
            keywords[key] = estimate.value
        if index in self._betas:
            tensors |= self._scaled_by_beta(index, term, tensors)
            keywords["beta"] = 1.0
        losses = term.loss(**tensors, **keywords)
        return losses if mask is None else losses.new_zeros(mask.shape).masked_scatter(mask, losses)

    def _scaled_by_beta(self, index: int, term: Term, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What beta multiplies in this term, multiplied: on the device, where a beta that is a number would be read."""
        beta, (multiplied, margins) = self._betas[index], MULTIPLIED[term.loss_name]
        if self.training:
            beta.add(*margins(tensors, term.keywords))
        return {name: beta.value * full_precision(tensors[name]) for name in multiplied}


def _identity(values: Tensor) -> Tensor:
    return values


def _rows_in(scores: Scores) -> int:
    return next(iter(scores.branches.values())).logp.shape[0]


def _unique_names(terms: Sequence[Term]) -> tuple[str, ...]:
    """The loss's name, with the term's index where several terms share a loss."""
    names = [term.loss_name for term in terms]
    return tuple(name if names.count(name) == 1 else f"{name}.{index}" for index, name in enumerate(names))
