"""``mmalign negatives``: preference rows out of rows with one good response, or out of bare pictures; no judge."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmalign.cli.sampling import Dtype
from mmalign.cli.terminal import hush_progress_bars

if TYPE_CHECKING:
    from mmalign.negatives import Built, Decoding, Method, Speaker
    from mmalign.negatives.reading import PictureRows, TableRows

SPEAKING: tuple[str, ...] = ("--model", "--max-new-tokens", "--temperature", "--top-p", "--dtype", "--device")


def negatives(
    method: Annotated[str | None, typer.Argument(help="What to do, such as bdhs; --methods shows all.")] = None,
    rows: Annotated[
        str | None, typer.Option(help="Preference data (its chosen side) or rows for tuning, in any format read.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Without --rows: folder of pictures. With it: where picture paths start.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New .parquet file for the pairs.")] = None,
    model: Annotated[str | None, typer.Option(help="What speaks: a folder, a hub id, playground/tiny-llava.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, repeatable.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="With bare pictures: what the model is asked about each. Default: describe it.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Format of --rows; default: recognised. sft: one response.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Use no more rows than this.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest text in tokens. Default 512.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of the draw; 0: the likeliest. Default 1.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Draw from this much mass. Default 1.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the model. Default bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; default: CUDA where there is one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, rows and model: same file.")] = 0,
    methods: Annotated[bool, typer.Option("--methods", help="Show all methods with their settings, and exit.")] = False,
) -> None:
    """Make pairs whose rejected response is made up: killed and started again, the same line goes on where it was."""
    if methods:
        _show_methods()
        return
    if method is None or out is None:
        raise ValueError("give a METHOD (mmalign negatives --methods shows all) and --out FILE.parquet")
    asked = dict(zip(SPEAKING, (model, max_new_tokens, temperature, top_p, dtype, device), strict=True))
    chosen, decoding = _checked(method, out, set_ or [], rows, images, prompt, source, asked)
    opened = _open(rows, images, prompt, source, max_rows)
    typer.echo(str(opened))
    speaker = None if model is None else _speaker(model, dtype, device, decoding)
    _run(method, chosen, opened, out, model, speaker, seed)


def _run(
    name: str,
    method: "Method",
    rows: "TableRows | PictureRows",
    out: Path,
    model: str | None,
    speaker: "Speaker | None",
    seed: int,
) -> None:
    from mmalign.negatives import Origin, make_negatives

    fingerprint = None if speaker is None else speaker.fingerprint()
    origin = Origin(rows.fingerprint, model, fingerprint)
    _tell(make_negatives(name, method, rows, out, origin=origin, speaker=speaker, seed=seed))


def _settings(given: list[str]) -> dict[str, Any]:
    from mmalign.training.overrides import apply_overrides

    settings: dict[str, Any] = {}
    mistakes = apply_overrides(settings, given)
    if mistakes:
        raise ValueError("\n".join(f"--set {mistake.path}: {mistake.problem}" for mistake in mistakes))
    return settings


def _checked(
    name: str,
    out: Path,
    given: list[str],
    rows: str | None,
    images: str | None,
    prompt: str | None,
    source: str | None,
    asked: dict[str, Any],
) -> "tuple[Method, Decoding]":
    """The method with its settings, and how the model speaks. One ValueError with every mistake on the line."""
    from mmalign.models.vlm_names import peek_vlm
    from mmalign.negatives import GENERATORS, method_of
    from mmalign.negatives.building import check_out

    problems: list[str] = []

    def tried(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ValueError as error:
            problems.append(str(error))
            return None

    tried(lambda: check_out(out))
    method = tried(lambda: method_of(name, _settings(given)))
    decoding = tried(lambda: _decoding(asked))
    if asked["--model"] is not None:
        tried(lambda: peek_vlm(_config(asked["--model"], asked["--dtype"])))
    if name in GENERATORS:
        problems += _problems(name, GENERATORS[name], rows, images, prompt, source, asked)
    if problems:
        raise ValueError("\n".join(problems))
    return method, decoding


def _problems(
    name: str,
    method: "type[Method]",
    rows: str | None,
    images: str | None,
    prompt: str | None,
    source: str | None,
    asked: dict[str, Any],
) -> list[str]:
    """Everything on the line that is missing or would be ignored."""
    problems = []
    if rows is None and images is None:
        problems.append("give --rows FILE, or --images FOLDER for bare pictures")
    if rows is not None and prompt is not None:
        problems.append("--prompt would be ignored: with --rows every row has its own")
    if rows is None and source is not None:
        problems.append("--source would be ignored: it is the format of --rows")
    bare = rows is None and method.reads_response
    if asked["--model"] is None and (method.speaks or bare):
        why = "speaks with a model" if method.speaks else "starts from a response, and bare pictures have none"
        problems.append(f"{name} {why}: give --model")
    if asked["--model"] is not None and not (method.speaks or bare):
        problems.append(f"--model would be ignored: {name} does not speak")
    given = [option for option, value in asked.items() if value is not None and option != "--model"]
    if given and asked["--model"] is None:
        problems.append(f"{', '.join(given)} would be ignored: there is no --model")
    if asked["--temperature"] == 0 and asked["--top-p"] is not None:
        problems.append("--top-p would be ignored: at --temperature 0 nothing is drawn")
    return problems


def _decoding(asked: dict[str, Any]) -> "Decoding":
    from mmalign.negatives import Decoding

    names = {"max_new_tokens": "--max-new-tokens", "temperature": "--temperature", "top_p": "--top-p"}
    return Decoding(**{name: asked[option] for name, option in names.items() if asked[option] is not None})


def _open(
    rows: str | None, images: str | None, prompt: str | None, source: str | None, max_rows: int | None
) -> "TableRows | PictureRows":
    from mmalign.negatives.reading import DESCRIBE, open_pictures, open_rows

    if rows is not None:
        return open_rows(rows, source=source or "auto", images=images, max_rows=max_rows)
    assert images is not None
    return open_pictures(images, DESCRIBE if prompt is None else prompt, max_rows=max_rows)


def _config(model: str, dtype: Dtype | None) -> Any:
    from mmalign.training.config import ModelConfig

    return ModelConfig(name=model, dtype=(dtype or Dtype.bfloat16).value)


def _speaker(model: str, dtype: Dtype | None, device: str | None, decoding: "Decoding") -> "Speaker":
    import torch

    from mmalign.models.vlm import load_vlm
    from mmalign.negatives import Speaker

    hush_progress_bars()
    loaded = load_vlm(_config(model, dtype))
    loaded.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Speaker(loaded.model, loaded.processor, decoding)


def _tell(built: "Built") -> None:
    from mmalign.data.table import count

    if built.left_out:
        typer.echo(f"{count(len(built.left_out), 'row')} without a pair:", err=True)
        for why, number in built.reasons.items():
            names = [name for name, reason in built.left_out if reason == why]
            typer.echo(f"  {number}: {why} ({', '.join(names[:3])}{', ...' if number > 3 else ''})", err=True)
    typer.echo(f"{count(built.pairs, 'pair')}: {built.path}")


def _show_methods() -> None:
    from rich.console import Console
    from rich.table import Table

    from mmalign.negatives import GENERATORS, defaults_of

    table = Table("method", "what is rejected", "settings (--set)", "model")
    for name, kind in GENERATORS.items():
        told = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        settings = "\n".join(f"{key}={_short(value)}" for key, value in defaults_of(name).items())
        table.add_row(name, told, settings, "speaks" if kind.speaks else "")
    Console().print(table)


def _short(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
