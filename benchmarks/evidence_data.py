"""The data of the evidence: one file per kind and seed, made once from the same samples of the model."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.labelled import LABELLED
from benchmarks.own_samples import samples
from mmalign.playground.datasets import write_dataset
from mmalign.playground.on_policy import PairSettings
from mmalign.playground.pairs import exchange_labels
from mmalign.quickstart import write_own_pairs

FLIP_RATE = 0.3


def make_data(kind: str, model: str, seed: int, folder: Path, console: Console) -> Path:
    """The file of ``kind`` (of ``MAKERS``, or a playground dataset) in ``folder``; one that exists is used again."""
    settings = PairSettings(model=model, seed=seed)
    if kind in MAKERS:
        return MAKERS[kind](settings, folder, console)
    path = folder / f"{kind}.parquet"
    if not path.exists():
        write_dataset(kind, samples(settings, folder, console), settings, path)
    return path


def _own(settings: PairSettings, folder: Path, console: Console) -> Path:
    return write_own_pairs(settings, folder / "pairs.parquet", console)


def _flipped(settings: PairSettings, folder: Path, console: Console) -> Path:
    right, path = _own(settings, folder, console), folder / "pairs_flipped.parquet"
    exchange_labels(right, path, FLIP_RATE, settings.seed)
    return path


MAKERS: dict[str, Callable[[PairSettings, Path, Console], Path]] = {
    "own": _own,
    "flipped": _flipped,
    **LABELLED,
}
