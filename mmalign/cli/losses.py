"""``mmalign losses``: every loss with its formula, what it asks for and its keywords."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmalign.training.mistakes import suggestion


def losses(
    name: Annotated[str | None, typer.Argument(help="One loss, to read its whole documentation.")] = None,
) -> None:
    """List every loss, or show one in full: [bold]mmalign losses dpo[/bold]."""
    from mmalign.losses.signatures import available_losses

    known = available_losses()
    if name is None:
        _print_table(known)
        typer.echo("\none in full: mmalign losses NAME")
    elif name in known:
        tensors, keywords = _arguments(known[name])
        typer.echo(f"{name}({', '.join([*tensors, '*', *keywords] if keywords else tensors)})\n")
        typer.echo(inspect.getdoc(known[name]) or "no documentation")
    else:
        raise ValueError(f"unknown loss {name!r}.{suggestion(name, known)} Losses: {', '.join(sorted(known))}")


def _print_table(known: dict[str, Callable[..., Any]]) -> None:
    table = Table("loss", "formula", "asks for", "keywords", box=None, padding=(0, 2, 0, 0))
    for name, loss in known.items():
        tensors, keywords = _arguments(loss)
        formula = (inspect.getdoc(loss) or "").partition("\n")[0].replace("``", "")
        # Text, because a formula with brackets would be read as markup.
        table.add_row(name, Text(formula), "\n".join(tensors), "\n".join(keywords))
    Console().print(table)


def _arguments(loss: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Names of the tensors, and keywords with their defaults."""
    from mmalign.losses.signatures import REQUIRED, LossSignature

    signature = LossSignature.of(loss)
    keywords = [
        key if parameter.default is REQUIRED else f"{key}={parameter.default}"
        for key, parameter in signature.keywords.items()
    ]
    return list(signature.tensors), keywords
