"""The most similar other picture, by embeddings of any vision encoder: the negative of rDPO (Re-Align, 2502.13146)."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT, VERSION = "mmalign.pictures", 1
VECTORS, MANIFEST = "embeddings.safetensors", "manifest.json"
SAME = 1 - 1e-6  # cosine from which two pictures are one that was saved twice


@dataclass(frozen=True)
class RetrievalIndex:
    """Unit embeddings of the distinct pictures of a data set. Make one with :meth:`of`.

    ``keys`` names each picture (a digest of its bytes), so that a picture is never its own neighbour and exact
    duplicates, which share a key, count once.
    """

    keys: tuple[str, ...]
    embeddings: Float[Tensor, "pictures width"]

    @classmethod
    def of(cls, keys: Sequence[str], embeddings: Float[Tensor, "pictures width"]) -> "RetrievalIndex":
        """An index of ``embeddings`` (not normalised yet), the first of each key. ValueError for zero or NaN ones."""
        if len(keys) != len(embeddings):
            raise ValueError(f"{len(keys)} keys for {len(embeddings)} embeddings; give one for each picture")
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key, place)
        kept = embeddings[list(first.values())].float()
        lengths = kept.norm(dim=-1)
        bad = [key for key, length in zip(first, lengths.tolist(), strict=True) if not 0 < length < float("inf")]
        if bad:
            raise ValueError(f"the embedding of {bad[0]} has length 0 or is not finite ({len(bad)} such)")
        return cls(tuple(first), kept / lengths[:, None])

    @cached_property
    def _place(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def nearest(self, key: str, k: int = 1) -> list[tuple[str, float]]:
        """The ``k`` pictures with the highest cosine to ``key``, best first: (key, cosine). Never ``key`` itself.

        A picture whose embedding has cosine 1 (to within 1e-6) is the same picture saved anew, and is left out too.
        Equal cosines go by key. ValueError for an unknown key, or fewer than ``k`` others.
        """
        if key not in self._place:
            raise ValueError(f"picture {key} is not in the index of {len(self.keys)}")
        own = self._place[key]
        cosines = self.embeddings @ self.embeddings[own]
        allowed = cosines < SAME
        allowed[own] = False
        number = int(allowed.sum())
        if k < 1 or number < k:
            raise ValueError(f"k={k} neighbours of {key} are wanted and {number} other pictures are there")
        least = cosines[allowed].topk(k).values[-1]
        places = (allowed & (cosines >= least)).nonzero()[:, 0].tolist()
        ranked = sorted(((self.keys[place], float(cosines[place])) for place in places), key=lambda x: (-x[1], x[0]))
        return ranked[:k]

    def save(self, folder: str | Path, *, fingerprint: str, **told: Any) -> Path:
        """Write the vectors (safetensors) and a manifest with ``fingerprint`` and whatever ``told`` says (JSON).

        ``fingerprint`` covers what the vectors depend on: encoder, its weights, the pictures. The manifest comes last
        and holds the hash of the vectors, so that a folder is whole or none.
        """
        target = Path(folder).expanduser()
        target.mkdir(parents=True, exist_ok=True)
        vectors = target / VECTORS
        partial = target / f"{VECTORS}.{os.getpid()}.partial"
        save_file({"embeddings": self.embeddings.contiguous()}, partial)
        header = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "keys": list(self.keys)}
        text = json.dumps({**header, "sha256": _sha256(partial), "told": told})
        _replace(partial, vectors)
        manifest = target / f"{MANIFEST}.{os.getpid()}.partial"
        manifest.write_text(text, encoding="utf-8")
        _replace(manifest, target / MANIFEST)
        return target

    @classmethod
    def load(cls, folder: str | Path, *, fingerprint: str | None = None) -> tuple["RetrievalIndex", dict[str, Any]]:
        """(the index that :meth:`save` wrote, what it was ``told``).

        ValueError for a folder without one, another version, vectors that are not those of the manifest, or, where
        ``fingerprint`` is given, an index of other pictures or another encoder.
        """
        source = Path(folder).expanduser()
        if not (source / MANIFEST).is_file():
            raise ValueError(f"{source} holds no index of pictures: it has no {MANIFEST}")
        said = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        if (said.get("format"), said.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"{source} is {said.get('format')} version {said.get('version')}; wanted is {FORMAT} {VERSION}"
            )
        if fingerprint is not None and said["fingerprint"] != fingerprint:
            raise ValueError(
                f"{source} is an index of other pictures or by another encoder (its fingerprint is "
                f"{said['fingerprint'][:16]}, wanted is {fingerprint[:16]}); remove it, or name another folder"
            )
        vectors = source / VECTORS
        if not vectors.is_file() or _sha256(vectors) != said["sha256"]:
            raise ValueError(f"{vectors} is not what {MANIFEST} was written for; remove the folder and build it again")
        return cls(tuple(said["keys"]), load_file(vectors)["embeddings"]), said["told"]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _replace(partial: Path, target: Path) -> None:
    with partial.open("rb") as opened:
        os.fsync(opened.fileno())
    partial.replace(target)
