"""The reference as the policy itself with its LoRA adapters switched off: no second set of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mmalign.references.fingerprint import fingerprint_of


class LoRAOffReference:
    """The policy without its adapters, which is the base model as long as nothing but the adapters is trained.

    ``module`` is the unwrapped policy with adapters already added (``unet.add_adapter(...)`` or ``get_peft_model``) and
    with everything else frozen. A policy that starts from an already aligned adapter needs a :class:`FrozenReference`:
    switched off, that adapter would be missing from the reference too.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
        if not self._layers:
            raise ValueError(
                f"{type(module).__name__} has no adapters to switch off; add LoRA first (module.add_adapter(config)), "
                "or use FrozenReference(module)"
            )
        of_adapters = {
            id(parameter)
            for layer in self._layers
            for holder in layer.adapter_layer_names
            for parameter in getattr(layer, holder).parameters()
        }
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._adapter_names = {names[identity] for identity in of_adapters}
        self._refuse_trained_base()

    def _refuse_trained_base(self) -> None:
        parameters = self._module.named_parameters()
        trained = [name for name, value in parameters if value.requires_grad and name not in self._adapter_names]
        if trained:
            raise ValueError(
                f"{len(trained)} parameters outside the adapters are trained ({', '.join(trained[:3])}, ...), so the "
                "policy without adapters would not stay the base model; freeze them (module.requires_grad_(False) "
                "before add_adapter) or use FrozenReference(module)"
            )

    @contextmanager
    def using(self, policy: nn.Module) -> Iterator[nn.Module]:
        """``policy`` (the wrapped one) with adapters off; afterwards adapters and ``requires_grad`` are as before.

        Adapters must be on again before ``backward``: gradient checkpointing runs the layers a second time there.
        """
        enabled = [layer for layer in self._layers if not layer.disable_adapters]
        trained = [(parameter, parameter.requires_grad) for parameter in self._module.parameters()]
        try:
            for layer in enabled:
                layer.enable_adapters(False)
            yield policy
        finally:
            for layer in enabled:
                layer.enable_adapters(True)
            for parameter, requires_grad in trained:  # peft switches gradients together with the adapters
                parameter.requires_grad_(requires_grad)

    def fingerprint(self) -> str:
        """SHA-256 of the base weights, equal to that of the model before adapters were added."""
        return fingerprint_of(self._module, without=self._adapter_names)
