"""The most similar other picture, by embeddings of any vision encoder: the negative of rDPO (Re-Align, 2502.13146)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


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

    def nearest(self, key: str, k: int = 1) -> list[tuple[str, float]]:
        """The ``k`` pictures with the highest cosine to ``key``, best first: (key, cosine). Never ``key`` itself.

        A picture whose embedding has cosine 1 (to within 1e-6) is the same picture saved anew, and is left out too.
        Equal cosines go by key. ValueError for an unknown key, or fewer than ``k`` others.
        """
        if key not in self.keys:
            raise ValueError(f"picture {key} is not in the index of {len(self.keys)}")
        own = self.keys.index(key)
        cosines = self.embeddings @ self.embeddings[own]
        allowed = [
            (value, other)
            for other, value in zip(self.keys, cosines.tolist(), strict=True)
            if other != key and value < 1 - 1e-6
        ]
        if k < 1 or len(allowed) < k:
            raise ValueError(f"k={k} neighbours of {key} are wanted and {len(allowed)} other pictures are there")
        ranked = sorted(allowed, key=lambda pair: (-pair[0], pair[1]))
        return [(other, value) for value, other in ranked[:k]]
