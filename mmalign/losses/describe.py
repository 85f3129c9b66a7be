"""What a loss is and takes, for people: the text behind ``mmalign losses``."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmalign.losses import BATCH_COUPLED
from mmalign.losses.signatures import REQUIRED, LossSignature, available_losses


@dataclass(frozen=True)
class LossDescription:
    """``formula``: first line of the docstring; ``details``: the rest. ``keywords``: name -> default, where
    :data:`mmalign.losses.signatures.REQUIRED` marks one without. ``batch_coupled`` says when rows depend on each other.
    """

    name: str
    formula: str
    details: str
    tensors: tuple[str, ...]
    branch_keys: tuple[str, ...]
    keywords: Mapping[str, Any]
    needs_reference: bool
    batch_coupled: str | None

    def __str__(self) -> str:
        keywords = [key if value is REQUIRED else f"{key}={value}" for key, value in self.keywords.items()]
        return f"{self.name}({', '.join(keywords)}) asks {', '.join(self.tensors)}: {self.formula}"


def describe(loss_name: str) -> LossDescription:
    """Describe a registered loss; ValueError names the known ones."""
    known = available_losses()
    if loss_name not in known:
        raise ValueError(f"unknown loss {loss_name!r}; losses: {', '.join(sorted(known))}")
    signature = LossSignature.of(known[loss_name])
    formula, _, details = inspect.cleandoc(known[loss_name].__doc__ or "").partition("\n")
    return LossDescription(
        name=loss_name,
        formula=formula,
        details=details.strip(),
        tensors=signature.tensors,
        branch_keys=signature.branch_keys,
        keywords={name: parameter.default for name, parameter in signature.keywords.items()},
        needs_reference=signature.needs_reference,
        batch_coupled=BATCH_COUPLED.get(loss_name),
    )
