"""How many bytes of tensors are alive at once while something runs, on any device, the meta device included."""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Inside, storages that operations make are counted from when they are made until they are freed.

    ``now`` and ``peak`` are bytes; ``known`` tensors, such as weights, count for nothing. What a kernel needs for
    itself while it runs, and what an allocator rounds up, is not seen.
    """

    def __init__(self, known: list[Tensor] | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in known or []:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value)
        return made

    def add(self, size: int) -> None:
        """``size`` bytes more that stay."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        weakref.finalize(storage, self._freed, size).atexit = False
        self.add(size)

    def _freed(self, size: int) -> None:
        self.now -= size


def alive() -> list[Tensor]:
    """All tensors that Python knows now, one for each storage."""
    gc.collect()
    found: dict[int, Tensor] = {}
    for each in gc.get_objects():
        if isinstance(each, Tensor) and not isinstance(each, torch._subclasses.FakeTensor):
            found.setdefault(each.untyped_storage()._cdata, each)
    return list(found.values())
