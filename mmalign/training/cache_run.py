"""Filling what a run keeps on disk without training, and telling what is there."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from mmalign.caches import RowRecords, Store, stores
from mmalign.caches.files import size_text
from mmalign.caches.manifest import Found
from mmalign.models import load_components
from mmalign.models.identity import denoiser_part
from mmalign.references.cached import kept_in
from mmalign.training.config import Config
from mmalign.training.image_cache import LATENTS, ROWS, ImageCache, cache_folder, checks_folder
from mmalign.training.image_data import open_data
from mmalign.training.image_disk import fill
from mmalign.training.image_model import checked_objective
from mmalign.training.image_rows import ImageRows
from mmalign.training.kept_scores_build import build_scores, refuse_other_ways
from mmalign.training.processes import join_processes, main_process_first
from mmalign.training.run import FAMILIES

_SCORES = "reference.kind=cached reference.path=FOLDER for the scores of the reference"
_TO_ADD = {
    "image": f"add data.cache=disk here and when you train, for latents and text embeddings, or {_SCORES}",
    "vlm": f"add {_SCORES}, here and when you train",
}


def build_cache(config: Config) -> list[Path]:
    """Make all that training with ``config`` would take from disk and that is not there yet; the folders it is in.

    That is latents and text embeddings (``data.cache: disk``), made without the denoiser, and the reference's scores
    (``reference: cached``). ValueError where ``config`` keeps neither.
    """
    folders = []
    if config.data.cache == "disk":
        _build_latents(config)
        folders.append(cache_folder(config))
    if config.reference.kind == "cached":
        folders.append(_build_scores(config))
    if not folders:
        raise ValueError(f"this recipe keeps nothing on disk; {_TO_ADD.get(config.family, 'nor can its family')}")
    return folders


def _build_latents(config: Config) -> None:
    objective = checked_objective(config)
    with main_process_first():
        data = open_data(config, objective, record=checks_folder(config))
    cache = ImageCache(config, data, objective.branches)
    if not cache.complete:
        components = load_components(config.model, without=denoiser_part(config.model))
        fill(
            cache,
            ImageRows(data.tables, config.data, data.shapes),
            components,
            torch.device(join_processes().device or "cpu"),
        )


def _build_scores(config: Config) -> Path:
    """Every reference score of the run; nothing is written to its output but the results of looking at pictures."""
    refuse_other_ways(config)
    family = FAMILIES[config.family](config)
    with main_process_first():
        data = family.open()
    computed, needed = build_scores(config, cast(Any, family.task(data)))
    say = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", soft_wrap=True)
    folder = Path(str(config.reference.path))
    say.print(
        f"cache: reference scores of {computed:,} of {needed:,} micro-batches computed, all are in {folder}",
        highlight=False,
        markup=False,
    )
    return folder


def contents(root: Path) -> list[tuple[str, str, str, str]]:
    """(folder, what it holds, size, made with) of every part of the cache at ``root``, or of kept scores there."""
    kept = kept_in(root)
    if kept is not None:
        number, settings = kept
        name = f"{number:,} micro-batches of reference scores ({', '.join(settings['branches'])})"
        versions = ", ".join(f"{package} {number}" for package, number in settings["versions"].items())
        return [(root.name, name, _size(root), f"reference {settings['reference'][:16]} ({versions})")]
    return [(found.folder.name, _holds(root, found), _size(found.folder), _made_with(found)) for found in stores(root)]


def _holds(root: Path, found: Found) -> str:
    if found.kind == ROWS:
        records = RowRecords.find(root, found.settings)
        state = "unfinished" if records is None else f"{len(records):,} rows"
        pictures = found.settings["pictures"]
        mirrored = ", also mirrored" if len(found.settings["mirrored"]) > 1 else ""
        return f"{state} at {pictures['resolution']} px ({', '.join(found.settings['branches'])}{mirrored})"
    store = Store(root, found.kind, found.settings, found.about)
    what = found.settings["contents"] if found.kind == LATENTS else "embeddings"
    return f"{len(store):,} {found.kind}: {what} in {found.settings['dtype']}"


def _made_with(found: Found) -> str:
    about: dict[str, Any] = found.about
    if not about:
        return f"latents-{found.settings['latents'][:16]}" if found.kind == ROWS else ""
    return f"{about['model']} (torch {about['torch']}, diffusers {about['diffusers']})"


def _size(folder: Path) -> str:
    return size_text(sum(path.stat().st_size for path in folder.iterdir()))
