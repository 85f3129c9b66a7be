"""Filling the disk cache of a run: by one process or several, which may be killed at any moment and started again."""

import os
import time
from collections.abc import Mapping

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from mmalign.caches import Claims, RowRecordsBuild, Writer, check_space, key_of
from mmalign.data.verification import progress_bar
from mmalign.models import Encoder
from mmalign.training.image_cache import ImageCache, kept_latents
from mmalign.training.image_cache_rows import SECONDS_BETWEEN_LOOKS, RowFiller, RowLoader, rotated
from mmalign.training.image_rows import ImageRows
from mmalign.training.task import RowKey


class CacheBuilder:
    """Encodes what ``cache`` lacks.

    Processes that fill one cache share the work, and each returns when all of it is there. It waits for living
    processes only: what a killed one had claimed is free again.
    """

    def __init__(
        self, cache: ImageCache, encoder: Encoder, rows: ImageRows, device: torch.device, *, workers: int
    ) -> None:
        self._cache, self._encoder, self._device, self._workers = cache, encoder, device, workers
        self._loader = RowLoader(rows, cache)
        self._latents, self._texts = Writer(cache.latents), Writer(cache.texts)
        # Each process begins elsewhere, so that claims rarely meet.
        self._share = int(os.environ.get("RANK", "0")) / int(os.environ.get("WORLD_SIZE", "1"))

    def build(self) -> tuple[int, int]:
        """Fill the cache; the numbers of latents and of texts that this process added.

        ValueError where the disk is too small, which is estimated first, or where something cannot be encoded.
        """
        cache = self._cache
        builds = {split: self._rows(split) for split in cache.tables if split not in cache.records}
        self._check_space(builds)
        # Every process knows how far all of them are; one bar is enough.
        with progress_bar(quiet=os.environ.get("RANK", "0") != "0") as progress:
            self._fill_text(progress)
            for split, build in builds.items():
                filler = RowFiller(split, build, self._loader, self._latents, self._encode_picture)
                filler.fill(progress, share=self._share, workers=self._workers)
        cache.find_records()
        if not cache.complete:
            raise ValueError(f"the cache {cache.root} is not whole after it was filled; does something delete from it?")
        return self._latents.written, self._texts.written

    def _rows(self, split: str) -> RowRecordsBuild:
        build = RowRecordsBuild(self._cache.root, self._cache.row_settings(split), len(self._cache.tables[split]))
        if build.joined:
            build.discard(self._cache.problem)
        return build

    def _check_space(self, builds: Mapping[str, RowRecordsBuild]) -> None:
        """One prompt and one row of each split are encoded to see how large they come out."""
        cache, needed = self._cache, 0
        prompts = cache.missing_prompts()
        if prompts:
            needed += len(prompts) * _size(self._encode_text(prompts[0]))
        for split, build in builds.items():
            left = sum(len(build.rows(part)) for part in set(range(build.parts)) - build.stored())
            if left:
                row = self._loader.load(RowKey(split, 0, 0))
                pictures = [picture for variant in row.variants for picture in variant.pictures()]
                # What is stored already may be what these rows need.
                new = max(0, left * len(pictures) - len(cache.latents))
                needed += new * _size(self._encode_picture(*pictures[0]))
        if needed:
            check_space(cache.root, needed, f"the latents and texts that {cache.root} lacks")

    def _fill_text(self, progress: Progress) -> None:
        prompts = {key_of(prompt): prompt for prompt in self._cache.missing_prompts()}
        if not prompts:
            return
        task = progress.add_task("encoding prompts", total=len(prompts))
        store = self._cache.texts
        with Claims(store.folder / "claims.lock") as claims:
            while missing := store.missing(prompts):
                progress.update(task, completed=len(prompts) - len(missing))
                if not self._text_work({key: prompts[key] for key in missing}, claims, progress, task):
                    time.sleep(SECONDS_BETWEEN_LOOKS)  # others are at the rest
                store.refresh()
        progress.update(task, completed=len(prompts))

    def _text_work(self, missing: Mapping[str, str], claims: Claims, progress: Progress, task: TaskID) -> bool:
        """Claim, encode and store prompts by the first two digits of their keys; whether there were any to claim."""
        held: list[int] = []

        def commit() -> None:
            self._texts.flush()
            while held:
                claims.free(held.pop())

        worked = False
        for digits in rotated(sorted({int(key[:2], 16) for key in missing}), self._share):
            if not claims.take(digits):
                continue
            held.append(digits)
            self._cache.texts.refresh()
            for key in [key for key in missing if int(key[:2], 16) == digits and key not in self._texts]:
                self._texts.add(key, self._encode_text(missing[key]))
                progress.advance(task)
                worked = True
            if self._texts.due:
                commit()
        commit()
        return worked

    def _encode_picture(self, key: str, picture: Tensor, name: str) -> Mapping[str, Tensor]:
        mean, std = self._encoder.moments(picture[None].to(self._device))
        return _finite(kept_latents(mean[0].cpu(), std[0].cpu(), key, self._cache.config), f"the latents of {name}")

    def _encode_text(self, prompt: str) -> Mapping[str, Tensor]:
        text, pooled = self._encoder.text([prompt])
        tensors = {"text": text[0]} if pooled is None else {"text": text[0], "pooled": pooled[0]}
        kept = {name: tensor.cpu().to(self._cache.text_dtype) for name, tensor in tensors.items()}
        return _finite(kept, f"the text {prompt!r}")


def _finite(tensors: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    for tensor in tensors.values():
        if not tensor.isfinite().all():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} cannot be cached: as {dtype} they are not all finite. Take a wider data.cache_dtype "
                "(float32, bfloat16); if it is float32 already, the encoder itself fails on it"
            )
    return tensors


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
