"""One term of an objective: a loss, the branches it reads, its coefficient; and the validation of its config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mmalign.losses.auto_beta import AUTO, MULTIPLIED, AutoBetaSettings, mistakes_in
from mmalign.losses.auto_beta import KEYS as AUTO_BETA_KEYS
from mmalign.losses.running import ESTIMATES, RUNNING
from mmalign.losses.signatures import (
    REQUIRED,
    ROW_FIELDS,
    LossSignature,
    accepts,
    available_losses,
    expected,
    read_argument,
)
from mmalign.types import Scores

OWN_KEYS = ("loss", "coefficient", "score")

# (loss, keyword) -> (other keyword, value) without which the first would be ignored.
READ_ONLY_WITH = {("f_dpo", "alpha"): ("divergence", "alpha")}


@dataclass(frozen=True)
class Term:
    """``coefficient * loss(...)`` over named branches. ``running`` names the keywords that the objective estimates;
    ``auto_beta`` is how it estimates beta, None where beta is a number."""

    loss_name: str
    loss: Callable[..., Tensor]
    signature: LossSignature
    branches: Mapping[str, str]
    keywords: Mapping[str, Any]
    running: tuple[str, ...]
    auto_beta: AutoBetaSettings | None
    coefficient: float
    mean: bool

    def tensors(self, scores: Scores) -> dict[str, Tensor]:
        """The loss's tensor arguments, read from ``scores``."""
        return {name: read_argument(name, scores, self.branches, mean=self.mean) for name in self.signature.tensors}

    def rows(self, present: Mapping[str, Bool[Tensor, " batch"]]) -> Bool[Tensor, " batch"] | None:
        """Rows that have every branch of this term; None means all of them."""
        masks = [present[branch] for branch in self.branches.values() if branch in present]
        return torch.stack(masks).all(dim=0) if masks else None


def parse_terms(configs: Sequence[Mapping[str, Any]]) -> tuple[Term, ...]:
    """Terms of an objective; one ValueError lists every mistake of every term."""
    mistakes: list[str] = [] if configs else ["an objective needs at least one term, such as {loss: dpo, beta: 0.1}"]
    terms = []
    known = available_losses()
    for index, config in enumerate(configs):
        found = _mistakes(config, known)
        mistakes += [f"objective.{index}: {mistake}" for mistake in found]
        if not found:
            terms.append(_build(config, known[config["loss"]]))
    if mistakes:
        raise ValueError("the objective is not valid:\n" + "\n".join(f"  - {mistake}" for mistake in mistakes))
    return tuple(terms)


def _build(config: Mapping[str, Any], loss: Callable[..., Tensor]) -> Term:
    signature = LossSignature.of(loss)
    keywords = {key: config[key] for key in signature.keywords if key in config}
    return Term(
        loss_name=config["loss"],
        loss=loss,
        signature=signature,
        branches={key: config.get(key, key) for key in signature.branch_keys},
        keywords={key: value for key, value in keywords.items() if value not in (RUNNING, AUTO)},
        running=tuple(key for key, value in keywords.items() if value == RUNNING),
        auto_beta=AutoBetaSettings.of(config),
        coefficient=float(config.get("coefficient", 1.0)),
        mean=config.get("score", "sum") == "mean",
    )


def _mistakes(config: Mapping[str, Any], known: Mapping[str, Callable[..., Tensor]]) -> list[str]:
    name = config.get("loss")
    if not isinstance(name, str) or name not in known:
        return [f"unknown loss {name!r}{_did_you_mean(name, known)}; losses: {', '.join(sorted(known))}"]
    signature = LossSignature.of(known[name])
    wrong = _wrong_keys(name, config, signature) + _wrong_own_values(name, config, signature)
    wrong += _wrong_keywords(name, config, signature)
    wrong += mistakes_in(name, config) if "beta" in signature.keywords else []
    # The range of a keyword is known to the loss alone, so a well-formed term is tried once on two rows of zeros.
    return wrong or _refused_values(name, config, known[name], signature)


def _wrong_keys(name: str, config: Mapping[str, Any], signature: LossSignature) -> list[str]:
    valid = (*OWN_KEYS, *signature.branch_keys, *signature.keywords)
    known = (*valid, *AUTO_BETA_KEYS) if "beta" in signature.keywords else valid
    choices = f"{name} takes {', '.join(valid[1:])}"
    mistakes = []
    for key in config:
        if key in ROW_FIELDS & set(signature.tensors):
            mistakes.append(f"{key!r} comes from the data's rows, it is not a key of a term; {choices}")
        elif key not in known:
            mistakes.append(f"unknown key {key!r}{_did_you_mean(key, known)}; {choices}")
    required = [key for key, parameter in signature.keywords.items() if parameter.default is REQUIRED]
    return mistakes + [f"{name} needs {key!r}; {choices}" for key in required if key not in config]


def _wrong_own_values(name: str, config: Mapping[str, Any], signature: LossSignature) -> list[str]:
    mistakes = []
    if not accepts(float, config.get("coefficient", 1.0)):
        mistakes.append(f"coefficient must be a number, got {config['coefficient']!r}")
    if config.get("score", "sum") not in ("sum", "mean"):
        mistakes.append(f"score must be sum | mean, got {config['score']!r}")
    if "score" in config and not signature.sums_over_tokens:
        mistakes.append(f"score has no effect on {name}, which asks for {', '.join(signature.tensors)}; leave it out")
    branches = {key: config.get(key, key) for key in signature.branch_keys}
    for key, branch in branches.items():
        if not isinstance(branch, str) or not branch:
            mistakes.append(f"{key} must name a branch, such as chosen or chosen@crop, got {branch!r}")
    names = [str(branch) for branch in branches.values()]
    if len(set(names)) < len(names):
        mistakes.append(f"{' and '.join(branches)} name the same branch {names[0]!r}, so they can never differ")
    return mistakes


def _wrong_keywords(name: str, config: Mapping[str, Any], signature: LossSignature) -> list[str]:
    mistakes = []
    for (loss_name, key), (other, needed) in READ_ONLY_WITH.items():
        if loss_name == name and key in config and config.get(other) != needed:
            mistakes.append(f"{key} is ignored unless {other} is {needed}, got {other} {config.get(other)!r}")
    for key, parameter in signature.keywords.items():
        if key not in config or accepts(parameter.annotation, config[key]):
            continue
        can_run = key in ESTIMATES.get(name, {})
        if (can_run and config[key] == RUNNING) or (key == "beta" and config[key] == AUTO):
            continue  # whether this loss can have beta: auto is said once, by mistakes_in
        allowed = expected(parameter.annotation) + (f" or {RUNNING}" if can_run else "")
        allowed += f" or {AUTO}" if key == "beta" and name in MULTIPLIED else ""
        mistakes.append(f"{key} must be {allowed}, got {config[key]!r}{_yaml_hint(config[key])}")
    return mistakes


def _refused_values(
    name: str, config: Mapping[str, Any], loss: Callable[..., Tensor], signature: LossSignature
) -> list[str]:
    keywords = {key: config[key] for key in signature.keywords if key in config and config[key] != RUNNING}
    if config.get("beta") == AUTO:
        keywords["beta"] = config["beta_start"]
    lists = {tensor for tensor in signature.tensors if tensor.startswith("candidate_") or tensor == "labels"}
    wide = ("_features", "_point", "_direction")
    lists |= {tensor for tensor in signature.tensors if tensor.endswith(wide) or "part" in tensor}
    zeros = {tensor: torch.zeros((2, 2) if tensor in lists else (2,)) for tensor in signature.tensors}
    if "desirable" in zeros:
        zeros["desirable"] = zeros["desirable"].bool()
    try:
        loss(**zeros, **keywords)
    except ValueError as error:
        return [f"{name}: {error}"]
    return []


def _did_you_mean(given: Any, valid: Sequence[str] | Mapping[str, Any]) -> str:
    matches = get_close_matches(str(given), list(valid), n=2)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def _yaml_hint(value: Any) -> str:
    """YAML reads 5e3 as text: a number needs a dot (5.0e+3)."""
    if not isinstance(value, str):
        return ""
    try:
        return f" (text in YAML; write {float(value)!r})"
    except ValueError:
        return ""
