"""LoRA on linear layers with fewer passes over their outputs: the same numbers up to rounding, the same names."""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn


class FusedLinear(lora.Linear):
    """W x + b + s B (A x), the product with B scaled and added into the linear layer's output by one call.

    ``peft`` makes B (A x), scales it and adds it, each a pass over a tensor as large as the output, and the backward
    scales the gradient in one more; under autocast it also takes x to the adapter's precision and back. In bf16 the sum
    is rounded once instead of twice. Everything else (DoRA, adapters by row, biases, an adapter in another precision
    than its layer) goes to peft's own forward. B = 0 adds exactly nothing.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = not (self.disable_adapters or self.merged or args or kwargs) and x.ndim > 1
        if not (plain and all(self._is_plain(name, x) for name in active)):
            return super().forward(x, *args, **kwargs)
        rows = x.flatten(0, -2)
        result: Tensor = self.base_layer(rows)
        for name in active:
            low = self.lora_A[name](self.lora_dropout[name](rows))
            up: Any = self.lora_B[name].weight
            # In place: what a linear layer gives is needed by no backward. Autocast does not cast for it.
            result = result.addmm_(low, up.T.to(result.dtype), alpha=self.scaling[name])
        return result.view(*x.shape[:-1], -1)

    def _is_plain(self, name: str, x: Tensor) -> bool:
        if name in self.lora_variant or self.lora_bias[name]:
            return False
        precisions = {x.dtype, self.base_layer.weight.dtype, self.lora_A[name].weight.dtype}
        if len(precisions) == 1:
            return True
        return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def fuse_lora(module: nn.Module) -> None:
    """Make every LoRA on a plain linear layer inside ``module`` a :class:`FusedLinear`; weights stay where they are.

    Quantized layers, convolutions and embeddings, for which peft has classes of their own, stay as they are.
    """
    for layer in module.modules():
        if type(layer) is lora.Linear:
            layer.__class__ = FusedLinear
