"""What several processes add up and tell each other; with one process, nothing happens."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """Collective operations of a run: every process has to call them in the same order."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.device: torch.device = accelerator.device

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and speaks."""
        return self._accelerator.is_main_process

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on this device."""
        return self._reduce(values, "sum")

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, on this device."""
        return self._reduce(values, "mean")

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of every process in one list, in the processes' order."""
        return gather_object(items) if self.count > 1 else items

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; waits for the device where there are several."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor(int(flag), device=self.device)).item())

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        if self.count == 1:
            return values
        reduced = self._accelerator.reduce(values.to(self.device).clone(), reduction=how)
        assert isinstance(reduced, Tensor)
        return reduced
