"""Every kind of preference data from a playground model's own samples: ``python -m mmalign.playground.datasets KIND``.

``pairs``: best against worst of the samples. ``soft``: two pairs of every four samples with the probability that the
better one wins. ``votes``: those pairs with one vote drawn from the probability. ``mismatch``: monochrome renderings
against samples. ``tastes``: pairs by users who disagree. All these are Pick-a-Pic parquet. ``rankings``: all samples
of a prompt with their rewards, as canonical parquet.

For vision-language models, as canonical VLM parquet: ``vlm``: right descriptions and answers against what the habits
of the training pictures foretell. ``vlm-own``: right descriptions against the model's own that make something up.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.playground.mismatch import make_mismatch_pairs
from mmalign.playground.on_policy import PairSettings, sample_groups
from mmalign.playground.pairs import make_pairs, write_pickapic
from mmalign.playground.rankings import make_rankings
from mmalign.playground.tastes import make_user_pairs
from mmalign.playground.vlm_pairs import VLMPairSettings, collect

Groups = Sequence[tuple[str, Sequence[Image.Image]]]
SOFT_TEMPERATURE = 0.3


def write_dataset(kind: str, groups: Groups, settings: PairSettings, path: Path) -> None:
    """Make ``kind`` (a key of ``KINDS``) of ``groups`` (prompts with their samples) and write it to ``path``."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r} of data; choose one of {', '.join(KINDS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    KINDS[kind](groups, settings, partial)
    partial.replace(path)


def _pairs(groups: Groups, settings: PairSettings, path: Path) -> None:
    write_pickapic(make_pairs(groups, seed=settings.seed, model=settings.model), path)


def _soft(groups: Groups, settings: PairSettings, path: Path) -> None:
    write_pickapic(_soft_rows(groups, settings), path)


def _votes(groups: Groups, settings: PairSettings, path: Path) -> None:
    rows = _soft_rows(groups, settings)
    drawn = np.random.default_rng([settings.seed, 1]).random(len(rows))
    for row, draw in zip(rows, drawn, strict=True):
        row["label_0"] = float(draw < row["label_0"])
        row["label_1"] = 1 - row["label_0"]
        row["best_image_uid"] = row["image_0_uid" if row["label_0"] else "image_1_uid"]
    write_pickapic(rows, path)


def _soft_rows(groups: Groups, settings: PairSettings) -> list[dict]:
    halves = [(prompt, images[i : i + 2]) for prompt, images in groups for i in range(0, len(images) - 1, 2)]
    return make_pairs(halves, soft=True, temperature=SOFT_TEMPERATURE, seed=settings.seed, model=settings.model)


def _mismatch(groups: Groups, settings: PairSettings, path: Path) -> None:
    write_pickapic(make_mismatch_pairs(groups, seed=settings.seed, model=settings.model), path)


def _tastes(groups: Groups, settings: PairSettings, path: Path) -> None:
    write_pickapic(make_user_pairs(groups, seed=settings.seed, model=settings.model), path)


def _rankings(groups: Groups, settings: PairSettings, path: Path) -> None:
    from mmalign.data import table_of, write_canonical

    rows = make_rankings(groups, model=settings.model)
    write_canonical(table_of(rows, source=f"{settings.model}, ranked by the oracle"), path, provenance=asdict(settings))


KINDS: dict[str, Callable[[Groups, PairSettings, Path], None]] = {
    "pairs": _pairs,
    "soft": _soft,
    "votes": _votes,
    "mismatch": _mismatch,
    "tastes": _tastes,
    "rankings": _rankings,
}


VLM_KINDS = ("vlm", "vlm-own")


def write_vlm_dataset(kind: str, settings: VLMPairSettings, path: Path) -> int:
    """Make ``kind`` (one of ``VLM_KINDS``) and write it to ``path``, whole or not at all; returns how many rows."""
    from mmalign.vlm_data import table_of, write_vlm_canonical

    if kind not in VLM_KINDS:
        raise ValueError(f"there is no kind {kind!r} of VLM data; choose one of {', '.join(VLM_KINDS)}")
    rows = collect(kind, settings)
    write_vlm_canonical(table_of(rows, source=f"playground, {kind}, seed {settings.seed}"), path)
    return len(rows)


def main() -> None:
    """Make the data and write the file; every field of the kind's settings but the noise of labels is an option."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("kind", choices=[*KINDS, *VLM_KINDS], nargs="?")
    known = parser.parse_known_args()[0].kind
    settings = VLMPairSettings if known in VLM_KINDS else PairSettings
    parser.add_argument("--help", "-h", action="help")
    parser.add_argument("--out", type=Path, required=True, help="a .parquet file")
    for name, default in asdict(settings()).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool) and name != "soft":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
        elif name not in ("flip_rate", "soft"):
            parser.add_argument(option, type=type(default), default=default)
    values = vars(parser.parse_args())
    kind, path = values.pop("kind"), values.pop("out")
    if kind is None:
        parser.error(f"say what to make: {', '.join([*KINDS, *VLM_KINDS])}")
    if path.suffix != ".parquet":
        parser.error(f"--out {path}: give a name that ends in .parquet")
    if kind in VLM_KINDS:
        print(f"{write_vlm_dataset(kind, VLMPairSettings(**values), path)} rows: {path}")
        return
    _sample_and_write(kind, PairSettings(**values), path)
    print(f"{kind} of {values['prompts']} prompts: {path}")


def _sample_and_write(kind: str, settings: PairSettings, path: Path) -> None:
    from rich.progress import Progress

    from mmalign.models import load_aligned

    with Progress() as bar:
        task = bar.add_task("sampling", total=settings.pictures)
        groups = sample_groups(load_aligned(settings.model), settings, lambda done: bar.advance(task, done))
    write_dataset(kind, groups, settings, path)


if __name__ == "__main__":
    main()
