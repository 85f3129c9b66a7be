"""Rows with their nearest other picture beside them, for ``chosen@retrieved``: rDPO of Re-Align (arXiv 2502.13146)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, cat

from mmalign.corruptions import RetrievalIndex
from mmalign.data.decoding import decode
from mmalign.data.table import RowStorage, RowTable, hashed
from mmalign.types import ImageBytes, VLMPair

Embed = Callable[[list[Image.Image]], Float[Tensor, "pictures width"]]


def with_retrieved(
    table: RowTable[VLMPair], embed: Embed, *, name: str, rank: int = 1, batch_size: int = 32
) -> RowTable[VLMPair]:
    """``table`` whose rows bring, for each of their pictures, the ``rank``-th nearest other picture of the table.

    ``embed`` gives one vector per picture (the model's own vision encoder, or any); ``name`` says which, for the
    fingerprint. Every distinct picture is decoded and embedded once; only vectors and places stay in memory. A picture
    is never its own neighbour, nor is a copy of it. Rows without pictures stay as they are. Raises ValueError where a
    picture has fewer than ``rank`` others, or the table has no picture.
    """
    places: dict[str, tuple[int, int]] = {}
    vectors: list[Tensor] = []
    waiting: list[Image.Image] = []
    for position, row in enumerate(table):
        for number, image in enumerate(row.images):
            key = _digest(image)
            if key in places:
                continue
            places[key] = (position, number)
            waiting.append(decode(image))
            if len(waiting) == batch_size:
                vectors.append(embed(waiting).float().cpu())
                waiting = []
    if waiting:
        vectors.append(embed(waiting).float().cpu())
    if not places:
        raise ValueError(f"{table.report.source}: no row has a picture, so none can be retrieved")
    index = RetrievalIndex.of(list(places), cat(vectors))
    storage = _Retrieved(table, index, places, rank)
    storage.neighbours(next(iter(places)))  # an impossible rank shows now
    fingerprint = hashed(table.fingerprint, "retrieved", name, rank)
    notes = (*table.report.notes, f"Each picture's nearest other one (rank {rank}) by {name} is @retrieved.")
    return RowTable(storage, range(len(table)), replace(table.report, notes=notes), fingerprint, "vlm_pair")


@dataclass(frozen=True)
class _Retrieved:
    """Storage that adds retrieved pictures to rows of ``table`` as they are asked for."""

    table: RowTable[VLMPair]
    index: RetrievalIndex
    places: dict[str, tuple[int, int]]
    rank: int

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, position: int) -> VLMPair:
        row = self.table[position]
        if not row.images:
            return row
        found = [self.neighbours(_digest(image)) for image in row.images]
        pictures = tuple(self.table[place[0]].images[place[1]] for place in (self.places[key] for key, _ in found))
        cosines = [round(cosine, 6) for _, cosine in found]
        return replace(
            row,
            branch_images={**row.branch_images, "retrieved": pictures},
            extras={**row.extras, "retrieved_cosine": cosines},
        )

    def neighbours(self, key: str) -> tuple[str, float]:
        """Key and cosine of the neighbour of the wanted rank."""
        return self.index.nearest(key, self.rank)[-1]

    @property
    def prompts(self) -> list[str]:
        return self.table.prompts

    @property
    def groups(self) -> list[str]:
        storage: RowStorage[VLMPair] = self.table.storage
        groups: Sequence[str] = getattr(storage, "groups", storage.prompts)
        return [groups[position] for position in self.table.positions]

    @property
    def sample_ids(self) -> list[str]:
        return self.table.sample_ids

    @property
    def blocks(self) -> np.ndarray:
        return np.asarray(self.table.blocks)


def _digest(image: ImageBytes) -> str:
    return hashlib.sha256(image.read()).hexdigest()
