"""``mmalign score``: reward models' scores for a folder of pictures, in one pass, and resumable."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmalign.cli.terminal import hush_progress_bars

if TYPE_CHECKING:
    from mmalign.rewards.scoring import ScoredFolder

NAMED = 10


class Dtype(StrEnum):
    """Precision of the reward models."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def score(
    reward: Annotated[list[str], typer.Option(help="A reward model, such as hpsv2.1 or oracle; repeatable.")],
    images: Annotated[Path, typer.Option(help="Folder of pictures.")],
    out: Annotated[Path, typer.Option(help="New file, .jsonl or .parquet, with a row for each picture.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help=".jsonl or .csv with image and prompt, or text: one prompt, or a line for each picture in name order. "
            "Default: the manifest that mmalign generate wrote.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="REWARD=PATH: file or folder with its weights; repeatable. Default: $MMALIGN_REWARDS."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures scored at once.")] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the models; default float32.")] = None,
) -> None:
    """Score pictures; started again after a kill, the same line goes on where it was."""
    from mmalign.rewards import BUILT_IN, find_reward
    from mmalign.rewards.prompt_files import read_scored
    from mmalign.rewards.scoring import check_out, score_folder

    check_out(out)
    places = _weights(weights or [], reward)
    twice = sorted({name for name in reward if reward.count(name) > 1})
    if twice:
        raise ValueError(f"--reward {', '.join(twice)} is given twice")
    pictures = read_scored(images, prompts)
    if "oracle" in reward:
        # The oracle reads playground captions only; better said now than after the other models have loaded.
        from mmalign.playground.captions import parse

        for prompt in dict.fromkeys(picture.prompt for picture in pictures):
            parse(prompt)
    hush_progress_bars()
    models = []
    for name in reward:
        # What is computed from pixels alone has neither device nor precision.
        chosen = {} if name in BUILT_IN else {"device": device, "dtype": None if dtype is None else dtype.value}
        models.append(find_reward(name, weights=places.get(name), **chosen))
    from mmalign.cli.sampling import progress_bars

    # Not the batch size: after running out of memory one goes on with a smaller one.
    settings = {"device": device, "dtype": dtype and dtype.value, "weights": places}
    with progress_bars() as bars:
        task = bars.add_task("scoring", total=len(pictures))
        scored = score_folder(
            models,
            images,
            pictures,
            out,
            batch_size=batch_size,
            settings=settings,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    _tell(scored, [model.name for model in models], out)


def _weights(given: list[str], rewards: list[str]) -> dict[str, str]:
    places = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ValueError(f"--weights takes REWARD=PATH, such as hpsv2.1=HPS_v2.1_compressed.pt; got {text!r}")
        if name not in rewards:
            raise ValueError(f"--weights {text} would be ignored: --reward {name} is not given")
        places[name] = path
    return places


def _tell(scored: "ScoredFolder", names: list[str], out: Path) -> None:
    if scored.resumed:
        typer.echo(f"{scored.resumed} of {len(scored.rows)} scores were there already")
    for name in names:
        values = [row[name] for row in scored.rows if row[name] is not None]
        if values:
            mean = sum(values) / len(values)
            typer.echo(f"{name}: mean {mean:.4f}, from {min(values):.4f} to {max(values):.4f}, {len(values)} pictures")
        if scored.prompts_cut[name]:
            typer.echo(f"{name}: {scored.prompts_cut[name]} prompts are longer than it reads and were cut")
    broken = scored.broken
    if broken:
        typer.echo(f"{len(broken)} pictures could not be read and have no score:", err=True)
        for row in broken[:NAMED]:
            typer.echo(f"  {row['image']}: {row['error']}", err=True)
        if len(broken) > NAMED:
            typer.echo(f"  ... and {len(broken) - NAMED} more, all with their error in {out}", err=True)
    if len(broken) == len(scored.rows):
        raise ValueError(f"not one of the {len(broken)} pictures could be read")
    typer.echo(f"written: {out}, {out.name}.info.json")
