"""Read what a loss asks for from its signature, which is the contract: tensors by name, hyper-parameters by keyword."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from mmalign import losses
from mmalign.types import CANDIDATES, CHOSEN, REJECTED, SAMPLE, BranchScores, Scores

GOLD = "gold"
CHOSEN_OTHER, REJECTED_OTHER = "chosen_other", "rejected_other"
"""The same responses with other pictures."""
BRANCH_KEYS = (CHOSEN, REJECTED, CHOSEN_OTHER, REJECTED_OTHER, GOLD, CANDIDATES, SAMPLE)
ROW_FIELDS = frozenset({"preference", "margin", "labels", "desirable"})
REQUIRED = inspect.Parameter.empty

# Tensor argument -> (branch key, what is read from that branch's scores).
_SIDES = (CHOSEN, REJECTED, CHOSEN_OTHER, REJECTED_OTHER, GOLD)
_PREFIXES = {f"{key}_": key for key in _SIDES} | {"candidate_": CANDIDATES, "": SAMPLE}
# held: logp as a constant. token_kl: KL(reference || policy) of the next token, summed over the response.
_QUANTITIES = ("logratio", "logp", "mean_logp", "length", "gap", "score", "held", "token_kl")
_OF_REFERENCE = ("logratio", "ref_logp", "gap", "token_kl")
ARGUMENTS: dict[str, tuple[str, str]] = {
    f"{prefix}{quantity}": (key, quantity) for prefix, key in _PREFIXES.items() for quantity in _QUANTITIES
} | {f"ref_{prefix}logp": (key, "ref_logp") for prefix, key in _PREFIXES.items()}


def available_losses() -> dict[str, Callable[..., Tensor]]:
    """``LOSSES`` and the losses that installed packages offer in the entry-point group ``mmalign.losses``."""
    found = dict(losses.LOSSES)
    for entry in entry_points(group="mmalign.losses"):
        if entry.name in found:
            raise ValueError(f"loss {entry.name!r} is registered twice; the second time as {entry.value}")
        found[entry.name] = entry.load()
    return found


@dataclass(frozen=True)
class LossSignature:
    """``tensors`` in positional order; ``keywords``: name -> parameter (default ``REQUIRED`` where it has none)."""

    tensors: tuple[str, ...]
    keywords: Mapping[str, inspect.Parameter]

    @classmethod
    def of(cls, loss: Callable[..., Tensor]) -> "LossSignature":
        """Read ``loss``: positional arguments are tensors, keyword-only ones are hyper-parameters."""
        parameters = inspect.signature(loss).parameters.values()
        keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        return cls(tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY), keywords)

    @property
    def branch_keys(self) -> tuple[str, ...]:
        """The branch keys that a term of this loss may have, in a fixed order."""
        used = {ARGUMENTS[name][0] for name in self.tensors if name in ARGUMENTS}
        # What is told of a side beside its score (chosen_std) is missing where that side is.
        used |= {key for key in (CHOSEN, REJECTED) if any(name.startswith(f"{key}_") for name in self.extras)}
        return tuple(key for key in BRANCH_KEYS if key in used)

    @property
    def row_fields(self) -> frozenset[str]:
        """Row labels the loss asks for."""
        return ROW_FIELDS & set(self.tensors)

    @property
    def needs_reference(self) -> bool:
        """Whether any tensor comes from the reference."""
        return any(ARGUMENTS[name][1] in _OF_REFERENCE for name in self.tensors if name in ARGUMENTS)

    @property
    def reads_rewards(self) -> bool:
        """Whether any tensor is the score of a reward model (``chosen_score``), which only reward models give."""
        return any(ARGUMENTS[name][1] == "score" for name in self.tensors if name in ARGUMENTS)

    def quantities_of(self, key: str) -> frozenset[str]:
        """What is read from the branch that ``key`` stands for: ``logratio``, ``held``, ..."""
        return frozenset(ARGUMENTS[name][1] for name in self.tensors if name in ARGUMENTS and ARGUMENTS[name][0] == key)

    @property
    def extras(self) -> tuple[str, ...]:
        """Tensors that are neither scores nor row labels: what an adapter and a loss have agreed on."""
        return tuple(name for name in self.tensors if name not in ARGUMENTS and name not in ROW_FIELDS)

    @property
    def sums_over_tokens(self) -> bool:
        """Whether any tensor is a sum over tokens, which ``score: mean`` would turn into a mean."""
        return any(ARGUMENTS[name][1] in ("logratio", "logp", "ref_logp") for name in self.tensors if name in ARGUMENTS)


def read_argument(name: str, scores: Scores, branches: Mapping[str, str], *, mean: bool) -> Tensor:
    """The tensor called ``name`` for a term with these ``branches`` (branch key -> branch name).

    ``mean`` reads log-ratios and log-probs per token. Names that are neither scores nor row fields come from
    ``scores.extras``, so an adapter and a loss of a plug-in package can agree on further tensors.
    """
    if name in ARGUMENTS:
        key, quantity = ARGUMENTS[name]
        return _read_score(scores[branches[key]], quantity, mean)
    value = getattr(scores, name) if name in ROW_FIELDS else scores.extras.get(name)
    if value is None:
        raise ValueError(f"asks for {name!r}, but the scores have none; the data or the adapter must provide it")
    return value


def _read_score(branch: BranchScores, quantity: str, mean: bool) -> Tensor:
    length = torch.ones_like(branch.logp) if branch.length is None else branch.length
    if quantity == "length":
        return length
    if quantity == "mean_logp":
        return branch.mean_logp
    if quantity == "score":
        return branch.logp
    if quantity == "gap":
        if branch.gap is None:
            raise ValueError("asks for the gap between predictions of policy and reference, which these scores lack")
        return branch.gap
    value = getattr(branch, quantity)
    if value is None and quantity == "token_kl":
        raise ValueError("asks for the KL of each token's distribution, which only vision-language models give")
    if value is None:
        raise ValueError("asks for reference scores: pass a reference to adapter.score(...)")
    return value / length if mean else value


_PLAIN_TYPES = {float: "a number", int: "a whole number", str: "text", bool: "true or false", NoneType: "null"}


def accepts(annotation: Any, value: Any) -> bool:
    """Whether ``value`` suits a keyword annotated with ``annotation``; int counts as float, bool does not."""
    if get_origin(annotation) in (Union, UnionType):
        return any(accepts(option, value) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def expected(annotation: Any) -> str:
    """How to say ``annotation`` to a person writing a config."""
    if get_origin(annotation) in (Union, UnionType):
        # Tensors are for callers in Python; a config cannot hold one.
        return " or ".join(expected(option) for option in get_args(annotation) if option in _PLAIN_TYPES)
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return _PLAIN_TYPES[annotation]
