"""An index of the pictures of all rows, kept on disk while negatives are made, and beyond where a folder is named."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.corruptions import RetrievalIndex
from mmalign.corruptions.retrieval import MANIFEST
from mmalign.data.decoding import UnreadableImage, decode
from mmalign.data.verification import progress_bar
from mmalign.models.vision_encoder import VisionEncoder
from mmalign.negatives.answers import Answered
from mmalign.types import ImageBytes

BATCH, PART = 16, 1024  # pictures in one call of the encoder, and in one file of an index that is not done yet


@dataclass(frozen=True)
class Pictures:
    """``index`` and, for each of its keys, the first place of the picture: (row, number)."""

    rows: Sequence[Answered]
    index: RetrievalIndex
    places: dict[str, tuple[int, int]]

    def nearest(self, image: ImageBytes, k: int) -> list[tuple[ImageBytes, float]]:
        """The ``k`` pictures most like ``image`` (all others where there are fewer), best first, with their cosines."""
        key = digest(image)
        found = self.index.nearest(key, min(k, len(self.index.keys) - 1))
        return [(self.rows[row].images[number], cosine) for row, number, cosine in self._found(found)]

    def _found(self, found: list[tuple[str, float]]) -> Iterator[tuple[int, int, float]]:
        for key, cosine in found:
            yield (*self.places[key], cosine)


def index_of(rows: Sequence[Answered], encoder: VisionEncoder, folder: Path) -> Pictures:
    """The index in ``folder``, built there if there is none; an interrupted build goes on where it stopped.

    Every distinct picture is decoded and embedded once; those that cannot be are left out (their rows are named when
    their turn comes). ValueError where the folder's index is of other pictures or of another encoder.
    """
    places = _places(rows)
    mark = hashlib.sha256("\n".join((encoder.fingerprint, *places)).encode()).hexdigest()
    if not (folder / MANIFEST).is_file():
        _build(rows, places, encoder, folder, mark)
    index, _ = RetrievalIndex.load(folder, fingerprint=mark)
    return Pictures(rows, index, places)


def digest(image: ImageBytes) -> str:
    """What a picture is called in an index: SHA-256 of its bytes."""
    return hashlib.sha256(image.read()).hexdigest()


def _places(rows: Sequence[Answered]) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    for position in range(len(rows)):
        for number, image in enumerate(rows[position].images):
            try:
                places.setdefault(digest(image), (position, number))
            except OSError:
                continue
    if not places:
        raise ValueError("no row has a picture that can be read, so none can be found for another")
    return places


def _build(
    rows: Sequence[Answered], places: dict[str, tuple[int, int]], encoder: VisionEncoder, folder: Path, mark: str
) -> None:
    keys = list(places)
    folder.mkdir(parents=True, exist_ok=True)
    done: list[str] = []
    vectors: list[Tensor] = []
    with progress_bar() as progress:
        task = progress.add_task("embedding pictures", total=len(keys))
        for start in range(0, len(keys), PART):
            part = folder / f"part-{mark[:16]}-{start}"
            wanted = keys[start : start + PART]
            if not part.with_suffix(".json").is_file():
                _write(part, *_embedded(rows, places, wanted, encoder))
            done += json.loads(part.with_suffix(".json").read_text())
            vectors.append(load_file(part.with_suffix(".safetensors"))["embeddings"])
            progress.advance(task, len(wanted))
    if not done:
        raise ValueError("no picture of any row can be decoded, so none can be found for another")
    index = RetrievalIndex.of(done, torch.cat(vectors))
    index.save(folder, fingerprint=mark, encoder=encoder.name, encoder_fingerprint=encoder.fingerprint)
    for file in folder.glob("part-*"):
        file.unlink()


def _embedded(
    rows: Sequence[Answered], places: dict[str, tuple[int, int]], keys: Sequence[str], encoder: VisionEncoder
) -> tuple[list[str], Tensor]:
    known, vectors = [], [torch.zeros(0)]
    for start in range(0, len(keys), BATCH):
        pictures = []
        for key in keys[start : start + BATCH]:
            row, number = places[key]
            try:
                pictures.append(decode(rows[row].images[number]))
            except UnreadableImage:
                continue
            known.append(key)
        if pictures:
            vectors.append(encoder(pictures))
    return known, torch.cat([part for part in vectors if part.ndim == 2] or [torch.zeros(0, 1)])


def _write(part: Path, keys: list[str], vectors: Tensor) -> None:
    """The vectors, and last the keys, by whose file a part counts as done."""
    save_file({"embeddings": vectors.contiguous()}, part.with_suffix(".safetensors"))
    partial = part.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(keys))
    partial.replace(part.with_suffix(".json"))
