"""The reference as the policy itself with its LoRA adapters switched off: no second set of weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mmalign.references.adapters_of import Adapters
from mmalign.references.fingerprint import fingerprint_of


class LoRAOffReference:
    """The policy without its adapters, which is the base model as long as nothing but the adapters is trained.

    ``module`` is the unwrapped policy with adapters already added (``unet.add_adapter(...)`` or ``get_peft_model``) and
    with everything else frozen. ``keep`` names adapters that stay on: those that the policy started from, which are not
    trained. Without them the reference of a policy that starts from an aligned adapter would be another model.

    ``copy_trained``: parameters outside the adapters may be trained, too (a projector in full, beside a LoRA on the
    language model). They are copied here, before the first step, and the copies stand in their places while the
    reference runs; a resumed run makes them from the original weights again. Not for sharded modules.
    """

    def __init__(self, module: nn.Module, keep: Sequence[str] = (), *, copy_trained: bool = False) -> None:
        self._adapters, self._keep = Adapters(module), tuple(keep)
        owners = self._adapters.parameter_names()
        missing = set(keep) - set(owners.values())
        if missing:
            raise ValueError(
                f"{type(module).__name__} has no adapter {sorted(missing)}; it has {sorted(owners.values())}"
            )
        self._left_out = {name for name, adapter in owners.items() if adapter not in self._keep}
        trained = {
            name: value
            for name, value in module.named_parameters()
            if value.requires_grad and name not in self._left_out
        }
        if trained and not copy_trained:
            raise ValueError(
                f"{len(trained)} parameters outside the adapters are trained ({', '.join([*trained][:3])}, ...), so "
                "the policy without adapters would not stay the base model; freeze them (module.requires_grad_(False) "
                "before add_adapter), give copy_trained=True, or use FrozenReference(module)"
            )
        copies = {id(value): nn.Parameter(value.detach().clone(), requires_grad=False) for value in trained.values()}
        # Every place of a parameter: tied weights have several.
        self._places = [
            (part, name, copies[id(value)])
            for part in (module.modules() if copies else ())
            for name, value in part.named_parameters(recurse=False)
            if id(value) in copies
        ]

    @contextmanager
    def using(self, policy: nn.Module) -> Iterator[nn.Module]:
        """``policy`` (the wrapped one) with adapters off; afterwards adapters and ``requires_grad`` are as before."""
        with self._adapters.switched_to(self._keep), self._originals():
            yield policy

    def to(self, device: torch.device | str) -> "LoRAOffReference":
        """Move the copies of what is trained outside the adapters; everything else goes with the policy."""
        for _, _, copy in self._places:
            copy.data = copy.data.to(device)
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the base weights (and of the adapters that are kept), equal to that before adapters were added."""
        with self._originals():
            return fingerprint_of(self._adapters.module, without=self._left_out)

    @contextmanager
    def _originals(self) -> Iterator[None]:
        """Inside, the copies stand where trained parameters were, which autograd and the optimizer keep by identity."""
        trained = [(part, name, part._parameters[name]) for part, name, _ in self._places]
        try:
            for part, name, copy in self._places:
                part._parameters[name] = copy
            yield
        finally:
            for part, name, value in trained:
                part._parameters[name] = value
