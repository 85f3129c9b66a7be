"""``mmalign label``: preference data out of generated pictures, judged by reward models (AI feedback)."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmalign.cli.sampling import Dtype
from mmalign.cli.terminal import is_main_process

if TYPE_CHECKING:
    from mmalign.labelling.job import Job, OpenJob
    from mmalign.labelling.making import Making
    from mmalign.training.config import DataConfig


class Form(StrEnum):
    """What rows are made."""

    pairs = "pairs"
    soft = "soft"
    rankings = "rankings"
    unary = "unary"


class Which(StrEnum):
    """Which pairs of a prompt's pictures."""

    best_vs_worst = "best_vs_worst"
    all = "all"


class Target(StrEnum):
    """Formats that are written."""

    canonical = "canonical"
    pickapic = "pickapic"


def label(
    reward: Annotated[list[str], typer.Option(help="Reward model, repeatable (an ensemble), or a .yaml of several.")],
    out: Annotated[Path | None, typer.Option(help="New .parquet file for the labelled rows.")] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Folder of mmalign generate, repeatable.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Instead: rows to label anew, in any format that is read.")] = None,
    source: Annotated[str | None, typer.Option(help="Format of --data; default: recognised.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder that picture paths in --data start from.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Label no more rows of --data than this.")] = None,
    form: Annotated[Form, typer.Option("--as", help="Rows to make: soft are pairs with probabilities.")] = Form.pairs,
    which: Annotated[Which | None, typer.Option(help="Pairs of a prompt. Default best_vs_worst.")] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0, help="Leave out what is no further apart in score (psi, of an ensemble).")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Of soft labels: one for all rewards, or one each. Default 1.")
    ] = None,
    above: Annotated[float | None, typer.Option(help="Unary: desirable from this score on.")] = None,
    below: Annotated[float | None, typer.Option(help="Unary: undesirable up to this score. Default --above.")] = None,
    share: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Unary: instead, the best and the worst share of all pictures.")
    ] = None,
    to: Annotated[Target, typer.Option(help="Format to write; canonical keeps all provenance.")] = Target.canonical,
    weights: Annotated[str | None, typer.Option(help="File or folder with the reward's weights.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the rewards. Default float32.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures scored at once.")] = 16,
    ray: Annotated[
        int | None, typer.Option(min=1, metavar="WORKERS", help="Score with this many Ray actors (mmalign[ray]).")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Write no rows: freeze the scales of a .yaml to these pictures, in its state.")
    ] = False,
) -> None:
    """Score pictures and write pairs, rankings or single pictures that every trainer reads.

    Interrupted, the same line goes on where it stopped. Several processes share the work:
    accelerate launch --num_processes 8 -m mmalign.cli label ...
    """
    making = _making(form, which, min_margin, temperature, reward, above, below, share)
    config = _data(pictures, data, source, images, max_rows)
    if weights is not None and len(reward) > 1:
        raise ValueError("--weights belongs to one reward; of several, a .yaml file gives each its own")
    if fit != (out is None):
        raise ValueError("give --out FILE for labelled rows, or --fit, which writes none")
    if out is not None:
        _check_output(out, to, form)
    from mmalign.labelling.job import Job, OpenJob

    if ray is not None:
        from mmalign.labelling.on_ray import require_ray

        require_ray()
    options = {"weights": weights, "dtype": None if dtype is None else dtype.value, "device": device}
    job = Job(
        rewards=tuple(reward),
        records=Path() if out is None else out.with_name(f"{out.name}.scores").absolute(),
        folders=tuple(folder.absolute() for folder in pictures or ()),
        data=config,
        options={name: value for name, value in options.items() if value is not None},
        batch_size=batch_size,
    )
    if out is None:
        _fit(job)
        return
    opened = OpenJob.open(job)
    if len(reward) > 1 and form is Form.unary:
        raise ValueError("--as unary labels by one reward's own scale; combine several in a .yaml file")
    if _scored(opened, ray):
        _write(opened, making, out, to.value)


def _fit(job: "Job") -> None:
    from mmalign.data.verification import progress_bar
    from mmalign.labelling.fitting import fit_state

    with progress_bar() as bar:
        task = bar.add_task("scoring the reference set", total=len(job.open_pictures().groups))
        combined, pictures = fit_state(job, lambda done: bar.advance(task, done))
    typer.echo(f"{combined.name} {combined.version}: frozen to {pictures} pictures in {combined.state_file}")


def _scored(opened: "OpenJob", ray: int | None) -> bool:
    """Score with a bar; True for the process that writes."""
    from mmalign.data.verification import progress_bar
    from mmalign.labelling.job import score_shared

    if not is_main_process():
        return score_shared(opened)
    typer.echo(opened.pictures.described)
    with progress_bar() as bar:
        names = ", ".join(opened.versions)
        task = bar.add_task(f"scoring with {names}", total=opened.records.rows, completed=opened.rows_done())
        if ray is None:
            return score_shared(opened, lambda done: bar.update(task, completed=done))
        from mmalign.labelling.on_ray import score_on_ray

        score_on_ray(opened, ray, lambda done: bar.update(task, completed=done))
        return True


def _write(opened: "OpenJob", making: "Making", out: Path, to: Literal["canonical", "pickapic"]) -> None:
    from mmalign.data.table import count
    from mmalign.labelling.job import labelled_table, write_labels

    table = labelled_table(opened, making)
    out.parent.mkdir(parents=True, exist_ok=True)
    left_out = write_labels(table, out, opened, making, to)
    typer.echo(str(table.report))
    if left_out:
        typer.echo(f"not kept, for Pick-a-Pic has no columns for them: {', '.join(left_out)} (canonical keeps all)")
    typer.echo(f"{count(len(table), 'row')}: {out}")


def _making(
    form: Form, which: Which | None, min_margin: float | None, temperature: list[float] | None, rewards: list[str],
    above: float | None, below: float | None, share: float | None,
) -> "Making":  # fmt: skip
    from mmalign.labelling.making import Making

    problems = _ignored(form, {"--which": which, "--min-margin": min_margin, "--temperature": temperature,
                               "--above": above, "--below": below, "--share": share})  # fmt: skip
    if len(set(rewards)) < len(rewards):
        problems.append("a reward is given twice")
    values = temperature or [1.0]
    if len(values) not in (1, len(rewards)) or not all(math.isfinite(value) and value > 0 for value in values):
        problems.append(f"--temperature: give one positive number, or one for each of {len(rewards)} rewards")
    if form is Form.unary and (above is None) == (share is None):
        problems.append("--as unary needs either --above SCORE or --share")
    if below is not None and above is not None and below > above:
        problems.append(f"--below {below:g} must not lie above --above {above:g}")
    if below is not None and share is not None:
        problems.append("--below would be ignored beside --share")
    if share == 0:
        problems.append("--share must be above 0")
    if problems:
        raise ValueError("\n".join(problems))
    each = values * len(rewards) if len(values) == 1 else values
    return Making(
        form=form.value,
        pairs="best_vs_worst" if which is None else which.value,
        min_margin=min_margin or 0.0,
        temperatures=tuple(each) if form is Form.soft else (),
        above=above,
        below=below,
        share=share,
    )


def _ignored(form: Form, options: dict[str, object]) -> list[str]:
    belongs = {
        "--which": (Form.pairs, Form.soft),
        "--min-margin": (Form.pairs, Form.soft, Form.rankings),
        "--temperature": (Form.soft,),
        **dict.fromkeys(("--above", "--below", "--share"), (Form.unary,)),
    }
    return [
        f"{name} would be ignored by --as {form.value}; it belongs to {', '.join(belongs[name])}"
        for name, value in options.items()
        if value is not None and form not in belongs[name]
    ]


def _data(
    pictures: list[Path] | None, data: str | None, source: str | None, images: str | None, max_rows: int | None
) -> "DataConfig | None":
    from mmalign.training.config import DataConfig

    if (not pictures) == (data is None):
        raise ValueError("give either --pictures FOLDER (repeatable) or --data PATH")
    if data is None:
        given = [name for name, value in (("source", source), ("images", images), ("max-rows", max_rows)) if value]
        if given:
            raise ValueError(f"--{given[0]} would be ignored: it belongs to --data")
        return None
    return DataConfig(
        source=source or "auto", path=data, images=images, max_rows=max_rows, ties="soft", max_corrupt=1.0
    )


def _check_output(out: Path, to: Target, form: Form) -> None:
    from mmalign.data.targets import new_parquet

    new_parquet(out, "--out ")
    if to is Target.pickapic and form not in (Form.pairs, Form.soft):
        raise ValueError(f"--to pickapic holds pairs, and --as {form.value} makes none; use --to canonical")
