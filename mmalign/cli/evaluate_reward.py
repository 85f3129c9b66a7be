"""``mmalign evaluate reward``: how well a reward model agrees with people, and under which rule that is said."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmalign.cli.sampling import Dtype

if TYPE_CHECKING:
    from mmalign.data import RowTable

Source = Annotated[str, typer.Option(help="Format of the data; auto recognises it.")]


def reward(
    data: Annotated[str, typer.Option(help="Pairs or rankings that people judged: file, folder, glob or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.txt, report.html and the scores.")],
    reward: Annotated[str | None, typer.Option(help="Installed reward model, or a .yaml of several.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Instead of scoring: a file of [bold]mmalign score[/bold]; of several, --reward.",
        ),
    ] = None,
    source: Source = "auto",
    images: Annotated[str | None, typer.Option(help="Folder that picture paths in the data start from.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset on the hub.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Use no more rows than this.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="Accuracy rule, repeatable; default: all, mmalign's own first.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="For rule pickapic: data of the same format that its threshold is chosen on.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="For rule pickapic: the threshold, where it is known.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Divides scores where they become probabilities (pickapic, calibration).")
    ] = 1.0,
    weights: Annotated[str | None, typer.Option(help="File or folder with the reward's weights.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the reward. Default float32.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures scored at once.")] = 16,
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamples of the prompts for intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
) -> None:
    """Score judged pictures and count agreement under every published rule, with calibration, best of n and probes."""
    from rich.console import Console

    from mmalign.data.verification import progress_bar
    from mmalign.evaluation.accuracy import RULES
    from mmalign.labelling.evaluation import Judge, evaluate_on, write_evaluation

    _check(reward, scores, rule or [], list(RULES), validation, threshold)
    table, second = (
        None if path is None else _open(path, source, images, split, max_rows) for path in (data, validation)
    )
    assert table is not None
    options = {"weights": weights, "dtype": None if dtype is None else dtype.value, "device": device}
    if scores is not None:
        ignored = [name for name, value in options.items() if value is not None]
        if ignored:
            raise ValueError(f"--{ignored[0]} would be ignored: with --scores no reward model is loaded")
        roots = [Path(folder) for folder in (images, data) if folder is not None]
        places = [root if root.is_dir() else root.parent for root in roots]
        judge = Judge.from_file(scores, reward=reward, roots=places)
    else:
        assert reward is not None
        judge = Judge.from_reward(reward, {name: value for name, value in options.items() if value is not None})
    with progress_bar() as bar:
        total = len(table) + (0 if second is None else len(second))
        task = bar.add_task(f"judging by {judge.name}", total=total)
        result = evaluate_on(
            judge, table, out,
            validation=second, rules=rule or [], threshold=threshold, temperature=temperature, batch_size=batch_size,
            bootstrap=bootstrap, seed=seed, progress=lambda done: bar.advance(task, done),
        )  # fmt: skip
    written = write_evaluation(result, table, out)
    console = Console()
    console.print(result.evaluation.table())
    console.print(result.evaluation.summary(), soft_wrap=True, markup=False, highlight=False)
    for note in result.evaluation.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    typer.echo(f"written: {', '.join(str(path) for path in written)}")


def _check(
    reward: str | None, scores: Path | None, rules: list[str], known: list[str], validation: str | None,
    threshold: float | None,
) -> None:  # fmt: skip
    problems = []
    if reward is None and scores is None:
        problems.append("give --reward NAME or --scores FILE")
    unknown = [name for name in rules if name not in known]
    if unknown:
        problems.append(f"there is no rule {unknown[0]!r}; choose from {', '.join(known)}")
    if validation is not None and threshold is not None:
        problems.append("--validation would be ignored beside --threshold; give one of them")
    given = "--validation" if validation is not None else "--threshold" if threshold is not None else None
    if given and rules and "pickapic" not in rules:
        problems.append(f"{given} would be ignored: it belongs to --rule pickapic")
    if given is None and "pickapic" in rules:
        problems.append("--rule pickapic needs --validation DATA, or --threshold")
    if problems:
        raise ValueError("\n".join(problems))


def _open(path: str, source: str, images: str | None, split: str | None, max_rows: int | None) -> "RowTable":
    from mmalign.data import open_table
    from mmalign.training.config import DataConfig

    return open_table(
        DataConfig(
            source=source, path=path, images=images, split=split, max_rows=max_rows, ties="soft", max_corrupt=1.0
        )
    )
