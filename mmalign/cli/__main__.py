"""``mmalign``: the commands, and what becomes of an error.

Exit codes: 0 done; 1 the work failed; 2 the input has to change; 3 ``training.guard`` stopped a run. A mistake of
the user is one clear message; ``--debug``, anywhere on the line, shows the traceback as well.
"""

import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import mmalign
from mmalign.cli import (
    arena,
    cache,
    data,
    doctor,
    evaluate,
    export,
    generate,
    label,
    losses,
    negatives,
    quickstart,
    recipes,
    score,
    train,
)
from mmalign.cli.terminal import hush_logs

app = typer.Typer(
    name="mmalign",
    help="Align image generators with human preference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)
app.command("generate")(generate.generate)
app.command("label")(label.label)
app.command("negatives")(negatives.negatives)
app.command("score")(score.score)
app.command("export")(export.export)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")
app.add_typer(arena.app, name="arena")
app.command("losses")(losses.losses)
app.add_typer(recipes.app, name="recipes")

# The user has to change something that was typed, or a file that was named.
_INPUT_ERRORS = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mmalign {mmalign.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (``sys.argv`` by default) and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        hush_logs()
    try:
        # The line as typed travels as the context's object: a run records how it was started.
        app(args=arguments, prog_name="mmalign", obj=shlex.join(["mmalign", *arguments]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        return 130
    except Exception as error:  # the outermost frame: every error ends here as a message and an exit code
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {_message(error)}", err=True)
        return 2 if isinstance(error, _INPUT_ERRORS) else getattr(error, "exit_code", 1)
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, ValueError | RuntimeError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (run again with --debug to see where)"


if __name__ == "__main__":
    sys.exit(main())
