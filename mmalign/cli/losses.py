"""``mmalign losses``: every loss with its formula, what it asks for and its keywords."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmalign.training.mistakes import suggestion

if TYPE_CHECKING:
    from mmalign.losses import LossDescription


def losses(
    name: Annotated[str | None, typer.Argument(help="One loss, to read its whole documentation.")] = None,
) -> None:
    """List every loss, or show one in full: [bold]mmalign losses dpo[/bold]."""
    from mmalign.losses import describe
    from mmalign.losses.signatures import available_losses

    known = list(available_losses())
    if name is None:
        _print_table([describe(loss) for loss in known])
        typer.echo("\none in full: mmalign losses NAME")
    elif name in known:
        _print_in_full(describe(name))
    else:
        raise ValueError(f"unknown loss {name!r}.{suggestion(name, known)} Losses: {', '.join(sorted(known))}")


def _print_table(descriptions: "list[LossDescription]") -> None:
    table = Table("loss", "formula", "asks for", "keywords", box=None, padding=(0, 2, 0, 0))
    for loss in descriptions:
        # Text, because a formula with brackets would be read as markup.
        formula = Text(loss.formula.replace("``", ""))
        table.add_row(loss.name, formula, "\n".join(loss.tensors), "\n".join(_keywords(loss)))
    Console().print(table)


def _print_in_full(loss: "LossDescription") -> None:
    keywords = _keywords(loss)
    typer.echo(f"{loss.name}({', '.join([*loss.tensors, '*', *keywords] if keywords else loss.tensors)})\n")
    typer.echo(f"{loss.formula}\n\n{loss.details}\n")
    typer.echo(f"branches: {', '.join(loss.branch_keys)}")
    typer.echo(f"needs a reference: {'yes' if loss.needs_reference else 'no'}")
    if loss.batch_coupled:
        typer.echo(f"rows of a batch depend on each other: {loss.batch_coupled}")


def _keywords(loss: "LossDescription") -> list[str]:
    from mmalign.losses.signatures import REQUIRED

    return [key if default is REQUIRED else f"{key}={default}" for key, default in loss.keywords.items()]
