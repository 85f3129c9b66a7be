"""The reference as a copy of its own: right for every policy, at the price of a second set of weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmalign.references.fingerprint import fingerprint_of


class FrozenReference:
    """A deep copy of ``module`` as it is now, in eval mode and without gradients.

    Make it before the first training step, from the unwrapped module, on the device where it shall stay (or move it
    with :meth:`to`). On resume make it from the *original* weights again, never from the resumed policy, and compare
    :meth:`fingerprint`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @classmethod
    def of(cls, module: nn.Module) -> "FrozenReference":
        """The same as ``FrozenReference(module)``."""
        return cls(module)

    def to(self, device: torch.device | str) -> "FrozenReference":
        """Move the copy to ``device``. Its dtype stays: another one would break the zero log-ratio at step 0."""
        self.module.to(device)
        return self

    @contextmanager
    def using(self, policy: nn.Module) -> Iterator[nn.Module]:  # noqa: ARG002 - the interface offers the policy
        """The frozen copy."""
        yield self.module

    def fingerprint(self) -> str:
        """SHA-256 of the copy's weights."""
        return fingerprint_of(self.module)
