"""Rows that reward models are tried on, in seconds: ``python -m mmalign.playground.reward_rows KIND --out FILE``.

No model draws the pictures: they are renderings of captions in which some attributes are changed. ``pairs``: the one
with more right attributes wins. ``users``: two groups of users, of whom one likes bright pictures and one dark ones.
``cycle``: which background beats which goes round in a circle. These are Pick-a-Pic parquet with labels 1 and 0.
``dimensions``: pairs with a label for each of colour, shape and background beside the overall one, where the two
pictures differ in it and for a share of the rows. ``rankings``: four pictures each, equally good ones tied. These are
canonical parquet.
"""

import argparse
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.playground.captions import parse
from mmalign.playground.oracle import judge_batch
from mmalign.playground.pairs import make_pairs, write_pickapic
from mmalign.playground.rankings import make_rankings
from mmalign.playground.renderer import render
from mmalign.playground.scene import Scene, arrange, sample_scene, training_prompts
from mmalign.playground.tastes import TASTES, make_cyclic_pairs, make_user_pairs
from mmalign.types import ImageBytes, PreferencePair

Groups = Sequence[tuple[str, Sequence[Image.Image]]]
DIMENSIONS = ("colour", "shape", "background")
OPPOSITES = {name: TASTES[name] for name in ("bright", "dark")}
SIDE = 64
RENDERED = "renderings"


@dataclass(frozen=True)
class RowSettings:
    """``prompts``: captions to draw. ``changed``: how likely each attribute is another than its caption's.

    ``users``: of each of the two tastes; every user judges every prompt. ``labelled``: share of the rows that were
    judged in a dimension.
    """

    prompts: int = 400
    changed: float = 0.35
    users: int = 2
    labelled: float = 0.7
    seed: int = 0


def rendered(prompts: Iterable[str], pictures: int, rng: np.random.Generator, *, changed: float = 0.35) -> Groups:
    """``pictures`` renderings of each prompt, each with its own changes."""
    return [(prompt, [_picture(parse(prompt), changed, rng) for _ in range(pictures)]) for prompt in prompts]


def _picture(scene: Scene, changed: float, rng: np.random.Generator) -> Image.Image:
    """``scene`` with each of its attributes drawn anew with probability ``changed``."""
    other = sample_scene(rng, "single", held_out=None)
    thing, drawn = scene.things[0], other.things[0]
    changes = {name: getattr(drawn, name) for name in ("shape", "colour", "size") if rng.random() < changed}
    kept = {name: getattr(other, name) for name in ("background", "style") if rng.random() < changed}
    return Image.fromarray(render(arrange(replace(scene, things=(replace(thing, **changes),), **kept), rng), SIDE))


def make_dimension_pairs(groups: Groups, *, labelled: float, seed: int) -> list[PreferencePair]:
    """Pairs of the first two pictures: the one with more right attributes wins, equal ones give no row.

    ``extras`` hold, by dimension, p(chosen is the better one): 1 or 0 where the pictures differ in it and, with
    probability ``labelled``, somebody said so.
    """
    rng, rows = np.random.default_rng([seed, 3]), []
    for number, (prompt, images) in enumerate(groups):
        two = judge_batch(images[:2], [prompt] * 2)
        if two[0].share == two[1].share:
            continue
        order = (0, 1) if two[0].share > two[1].share else (1, 0)
        said = {name: [two[side].correct[name] for side in order] for name in DIMENSIONS if rng.random() < labelled}
        extras = {name: float(right[0]) for name, right in said.items() if right[0] != right[1]}
        sides = [ImageBytes(f"pair {number}, picture {side}", data=_png(images[side])) for side in order]
        rows.append(PreferencePair(f"pair-{number}", prompt, sides[0], sides[1], extras=extras))
    return rows


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _pairs(settings: RowSettings, path: Path) -> None:
    write_pickapic(make_pairs(_groups(settings, 2), seed=settings.seed, model=RENDERED), path)


def _users(settings: RowSettings, path: Path) -> None:
    groups, many = _groups(settings, 2), settings.users
    rows = make_user_pairs(groups, tastes=OPPOSITES, users_per_taste=many, seed=settings.seed, model=RENDERED)
    write_pickapic(rows, path)


def _cycle(settings: RowSettings, path: Path) -> None:
    # Prompts say which background; most pictures have another one, or there would be few contests.
    groups = _groups(replace(settings, changed=max(settings.changed, 0.8)), 2)
    write_pickapic(make_cyclic_pairs(groups, seed=settings.seed, model=RENDERED), path)


def _dimensions(settings: RowSettings, path: Path) -> None:
    rows = make_dimension_pairs(_groups(settings, 2), labelled=settings.labelled, seed=settings.seed)
    _write_canonical(rows, path)


def _rankings(settings: RowSettings, path: Path) -> None:
    _write_canonical(make_rankings(_groups(settings, 4), model=RENDERED), path)


def _groups(settings: RowSettings, pictures: int) -> Groups:
    prompts = training_prompts("single", settings.prompts, settings.seed)
    return rendered(prompts, pictures, np.random.default_rng([settings.seed, 7]), changed=settings.changed)


def _write_canonical(rows: Sequence[Any], path: Path) -> None:
    from mmalign.data import table_of, write_canonical

    write_canonical(table_of(rows, source=RENDERED), path)


KINDS: dict[str, Callable[[RowSettings, Path], None]] = {
    "pairs": _pairs,
    "users": _users,
    "cycle": _cycle,
    "dimensions": _dimensions,
    "rankings": _rankings,
}


def write_reward_rows(kind: str, settings: RowSettings, path: Path) -> None:
    """Make ``kind`` (a key of ``KINDS``) and write it to ``path``, whole or not at all."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r} of rows; choose one of {', '.join(KINDS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    KINDS[kind](settings, partial)
    partial.replace(path)


def main() -> None:
    """Every field of :class:`RowSettings` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True, help="a .parquet file")
    for name, default in asdict(RowSettings()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args())
    kind, path = values.pop("kind"), values.pop("out")
    if path.suffix != ".parquet":
        parser.error(f"--out {path}: give a name that ends in .parquet")
    write_reward_rows(kind, RowSettings(**values), path)
    print(f"{kind} of {values['prompts']} prompts: {path}")


if __name__ == "__main__":
    main()
