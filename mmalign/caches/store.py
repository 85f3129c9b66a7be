"""Tensors by key, in memory-mapped safetensors shards."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmalign.caches.manifest import CacheMismatch, checked_folder, fingerprint_of_settings, make_folder

SUFFIX = ".safetensors"
KEYS = "keys"
KEY_LENGTH = 32
KEY_TYPE = np.dtype(f"S{KEY_LENGTH}")
_PLACE = np.dtype([("shard", np.int32), ("group", np.int32), ("row", np.int64)])


def key_of(*parts: bytes | memoryview | str) -> str:
    """128 bits, in hex, of a hash over the parts and their boundaries."""
    digest = hashlib.blake2b(digest_size=KEY_LENGTH // 2)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


class Store:
    """Entries (name -> tensor) by key. What is found lies on disk in full; nothing is ever changed or removed.

    A shard holds its entries in groups of equal names, shapes and dtypes: group ``g`` is the tensors ``g.keys``
    [n, 32] and ``g.NAME`` [n, ...]. The index is two flat arrays, 48 bytes an entry, which forked workers share;
    tensors are read through memory maps, so memory does not grow with what is read.
    """

    def __init__(self, root: Path, kind: str, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Open the store for ``settings`` under ``root``, empty if there is none. CacheMismatch for a foreign one.

        ``about``: what readers of the manifest may want to know besides, and entries do not depend on. Nothing is
        written before :meth:`create`.
        """
        self._made_with = (root, kind, settings, about)
        self.folder = checked_folder(root, kind, settings)
        self.fingerprint = fingerprint_of_settings(settings)
        self._shards: list[Path] = []
        self._open: dict[int, Any] = {}
        self._keys, self._places = np.empty(0, KEY_TYPE), np.empty(0, _PLACE)
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def create(self) -> None:
        """Make the folder, so that entries can be written."""
        make_folder(*self._made_with)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The distinct keys that have no entry, in their order."""
        wanted = list(dict.fromkeys(keys))
        found = np.isin(np.array(wanted, KEY_TYPE), self._keys)
        return [key for key, is_there in zip(wanted, found, strict=True) if not is_there]

    def holds(self, keys: np.ndarray) -> bool:
        """Whether every one of ``keys`` (dtype S32) has an entry."""
        return bool(np.isin(keys, self._keys).all())

    def read(self, key: str) -> dict[str, Tensor]:
        """The entry's tensors, copies in main memory; KeyError where there is none."""
        place = self._find(key)
        if place is None:
            raise KeyError(f"{self.folder} has no entry {key}")
        shard, group, row = (int(number) for number in place)
        file, prefix = self._file(shard), f"{group}."
        names = [name for name in file.keys() if name.startswith(prefix) and name != prefix + KEYS]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_slice(name)[row : row + 1][0].clone() for name in names}

    def refresh(self) -> None:
        """Take in the shards that other processes have written since."""
        known = set(self._shards)
        new = [path for path in sorted(self.folder.glob(f"*{SUFFIX}")) if path not in known]
        keys, places = [self._keys], [self._places]
        for path in new:
            for group, of_group in _keys_of(path, self.fingerprint).items():
                place = np.empty(len(of_group), _PLACE)
                place["shard"], place["group"], place["row"] = len(self._shards), group, np.arange(len(of_group))
                keys.append(of_group)
                places.append(place)
            self._shards.append(path)
        if new:
            # Of a key that was written twice the first place stays.
            self._keys, first = np.unique(np.concatenate(keys), return_index=True)
            self._places = np.concatenate(places)[first]

    def _find(self, key: str) -> Any:
        wanted = np.array(key, KEY_TYPE)
        position = int(np.searchsorted(self._keys, wanted))
        return self._places[position] if position < len(self._keys) and self._keys[position] == wanted else None

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            self._open[shard] = safe_open(self._shards[shard], framework="pt")
        return self._open[shard]


def grouped(entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a shard that holds ``entries``."""
    groups: dict[tuple, list[str]] = {}
    for key, tensors in entries.items():
        kind = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items()))
        groups.setdefault(kind, []).append(key)
    stacked = {}
    for number, keys in enumerate(groups.values()):
        stacked[f"{number}.{KEYS}"] = torch.tensor([list(key.encode()) for key in keys], dtype=torch.uint8)
        for name in entries[keys[0]]:
            stacked[f"{number}.{name}"] = torch.stack([entries[key][name] for key in keys])
    return stacked


def _keys_of(path: Path, fingerprint: str) -> dict[int, np.ndarray]:
    """Group -> its keys."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("settings") != fingerprint:
                raise CacheMismatch(f"{path} belongs to another cache folder; delete this file")
            names = [name for name in file.keys() if name.endswith(f".{KEYS}")]  # noqa: SIM118 - no mapping
            return {int(name.partition(".")[0]): as_keys(file.get_tensor(name)) for name in names}
    except SafetensorError as error:
        raise CacheMismatch(f"{path} is damaged ({error}); delete this file, and its entries are made again") from error


def as_keys(tensor: Tensor) -> np.ndarray:
    """[n, 32] bytes as an array of n keys."""
    return np.frombuffer(tensor.numpy().tobytes(), KEY_TYPE)
