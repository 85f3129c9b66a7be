"""The exponential moving average of the trained weights, and how to look through it for a moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class WeightAverage:
    """EMA over the trained parameters: shadow <- decay * shadow + (1 - decay) * weight, with the usual warm-up.

    The warm-up is diffusers': the decay of update n is at most n / (n + 9), so early weights are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._model = EMAModel(self._parameters, decay=decay, foreach=True)

    def update(self) -> None:
        """Take in the weights of one more optimizer step."""
        self._model.step(self._parameters)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(zip(self._names, self._model.shadow_params, strict=True))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; afterwards the trained ones again."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._model.copy_to(self._parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self._parameters, trained, strict=True):
                    parameter.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """How many updates there were; the weights themselves are :meth:`weights`."""
        return {"updates": self._model.optimization_step}

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over saved averages."""
        self._model.optimization_step = int(state["updates"])
        for name, shadow in zip(self._names, self._model.shadow_params, strict=True):
            shadow.copy_(weights[name])
