"""``mmalign evaluate vlm``: POPE, CHAIR or AMBER of a base and an aligned vision-language model, side by side."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmalign.cli.manifest import require_empty
from mmalign.cli.sampling import Dtype

if TYPE_CHECKING:
    from mmalign.evaluation.vlm.benchmarks import Benchmark


class BenchmarkName(StrEnum):
    """What there is."""

    pope = "pope"
    chair = "chair"
    amber = "amber"


class TextTools(StrEnum):
    """What reads descriptions."""

    builtin = "builtin"
    nltk = "nltk"


MAX_NEW_TOKENS = {"pope": 16, "chair": 512, "amber": 512}
# Option -> benchmarks that read it.
_BELONGS = {
    "annotations": ("chair", "amber"),
    "synonyms": ("chair",),
    "double_words": ("chair",),
    "prompt": ("chair",),
    "suffix": ("pope", "amber"),
    "text_tools": ("chair", "amber"),
}


def vlm(
    benchmark: Annotated[BenchmarkName, typer.Option(help="pope: yes or no; chair: descriptions; amber: both.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.txt, report.html and answers.")],
    questions: Annotated[
        list[Path] | None, typer.Option(help="File of questions; POPE: repeat for each split, or a folder.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model: a folder, a hub id, or playground/tiny-llava.")] = None,
    aligned: Annotated[str | None, typer.Option(help="LoRA or model: a folder, a run's folder, a hub id.")] = None,
    images: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder with the pictures.")] = None,
    base_answers: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Instead of asking: answers of the base, a file per split.")
    ] = None,
    aligned_answers: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Instead of asking: answers of the aligned model.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="CHAIR: folder with COCO's annotations; AMBER: folder with annotations.json.")
    ] = None,
    synonyms: Annotated[
        Path | None, typer.Option(help="CHAIR: synonyms.txt; default: the one in --annotations.")
    ] = None,
    double_words: Annotated[
        Path | None, typer.Option(help="CHAIR: take the double words from the official chair.py.")
    ] = None,
    text_tools: Annotated[
        TextTools | None,
        typer.Option(help="builtin needs nothing; nltk is what the official scripts use. Default: AMBER nltk."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="CHAIR: ask this about every picture.")] = None,
    suffix: Annotated[
        str | None, typer.Option(help="POPE, AMBER: a line behind each question, such as a request for one word.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens. Default: POPE 16, else 512.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Questions asked at once. Default 8.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the models. Default bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Resamples of the pictures for intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
) -> None:
    """Ask both models (or read their answers), and judge them by the official rules and by stricter ones."""
    of_benchmark = {
        "annotations": annotations, "synonyms": synonyms, "double_words": double_words, "prompt": prompt,
        "suffix": suffix, "text_tools": text_tools and text_tools.value,
    }  # fmt: skip
    asking = {
        "base": base, "aligned": aligned, "max_new_tokens": max_new_tokens, "batch_size": batch_size, "dtype": dtype,
        "device": device,
    }  # fmt: skip
    stored = base_answers, aligned_answers
    _check(benchmark.value, questions, images, of_benchmark, asking, stored)
    if any(stored) or not (out / "answers").is_dir():  # answers that are there already are gone on with
        require_empty(out)
    opened = _open(benchmark.value, questions or [], of_benchmark, (base_answers or [None])[0])
    if base_answers and aligned_answers:
        answers = opened.stored(base_answers), opened.stored(aligned_answers)
        names = tuple(", ".join(file.name for file in files) for files in (base_answers, aligned_answers))
        settings = {"answers": "stored"}
    else:
        assert base is not None
        assert aligned is not None
        assert images is not None
        answers, settings = _ask(opened, benchmark.value, images, out, asking)
        names = base, aligned
    settings |= {"questions": ", ".join(map(str, questions or []))} if questions else {}
    result = opened.evaluate(
        *answers, names=(names[0], names[1]), settings=settings, bootstrap=bootstrap, seed=seed
    )  # fmt: skip
    _write(result, out, images)


def _check(
    benchmark: str,
    questions: list[Path] | None,
    images: Path | None,
    of_benchmark: dict[str, Any],
    asking: dict[str, Any],
    stored: tuple[Any, Any],
) -> None:
    """One ValueError with every mistake on the line."""
    problems = []
    for name, value in of_benchmark.items():
        if value is not None and benchmark not in _BELONGS[name]:
            problems.append(f"{_option(name)} would be ignored: it is for {' and '.join(_BELONGS[name])}")
    given = [_option(name) for name, value in asking.items() if value is not None]
    if any(stored):
        if not all(stored):
            problems.append("--base-answers and --aligned-answers belong together; give both")
        if given:
            problems.append(f"{', '.join(given)} would be ignored: with stored answers no model is asked")
    elif asking["base"] is None or asking["aligned"] is None or images is None:
        problems.append(
            "give --base MODEL, --aligned MODEL and --images DIR, or --base-answers FILE and --aligned-answers FILE"
        )
    if benchmark in _BELONGS["annotations"] and of_benchmark["annotations"] is None:
        problems.append(f"--benchmark {benchmark} needs --annotations DIR (what has to be in it: {_wanted(benchmark)})")
    if not questions and not (benchmark == "chair" and any(stored)):
        problems.append(f"--benchmark {benchmark} needs --questions")
    if questions and len(questions) > 1 and benchmark != "pope":
        problems.append(f"--questions is one file for --benchmark {benchmark}")
    if problems:
        raise ValueError("\n".join(problems))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _wanted(benchmark: str) -> str:
    from mmalign.evaluation.vlm import amber_files, chair_words, coco

    return amber_files.WANTED if benchmark == "amber" else f"{coco.WANTED}. {chair_words.SOURCE}"


def _open(benchmark: str, questions: list[Path], options: dict[str, Any], captions: Path | None) -> "Benchmark":
    from mmalign.evaluation.vlm import benchmarks

    file = questions[0] if questions else None
    if benchmark == "pope":
        return benchmarks.pope_benchmark(questions, suffix=options["suffix"] or "")
    if benchmark == "chair":
        return benchmarks.chair_benchmark(
            file, annotations=options["annotations"], synonyms=options["synonyms"],
            double_words=options["double_words"], text_tools=options["text_tools"] or "builtin",
            prompt=options["prompt"], captions=captions,
        )  # fmt: skip
    assert file is not None
    return benchmarks.amber_benchmark(
        file,
        annotations=options["annotations"],
        text_tools=options["text_tools"] or "nltk",
        suffix=options["suffix"] or "",
    )


def _ask(
    opened: "Benchmark", benchmark: str, images: Path, out: Path, asking: dict[str, Any]
) -> tuple[tuple[list[str], list[str]], dict[str, str]]:
    from mmalign.cli.vlm_answers import Asker
    from mmalign.evaluation.vlm.answering import check_pictures

    asker = Asker(
        base=asking["base"], aligned=asking["aligned"], images=images, device=asking["device"],
        max_new_tokens=asking["max_new_tokens"] or MAX_NEW_TOKENS[benchmark], batch_size=asking["batch_size"] or 8,
        dtype=asking["dtype"] or Dtype.bfloat16,
    )  # fmt: skip
    check_pictures(opened.questions, images)
    asker.check()
    settings = {
        "answers": f"greedy, up to {asker.max_new_tokens} tokens, {asker.dtype.value}, {asker.batch_size} at once",
        "pictures from": str(images),
    }
    return asker.answer(opened.questions, out), settings


def _write(result: Any, out: Path, images: Path | None) -> None:
    import io

    from rich.console import Console

    from mmalign.evaluation.vlm.answering import write_whole
    from mmalign.report.vlm import write_vlm_report

    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    result.print(Console(file=text, width=160))
    write_whole(out / "results.json", result.to_json())
    write_whole(out / "table.txt", text.getvalue())
    report = write_vlm_report(result, out / "report.html", images)
    console = Console()
    result.print(console)
    console.print(result.summary(), soft_wrap=True, markup=False, highlight=False)
    typer.echo(f"written: {out / 'results.json'}, {out / 'table.txt'}, {report}")
