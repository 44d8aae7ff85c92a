"""``mimbench experiments``: the survey's questions as files that ``mimbench run`` takes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

experiments_app = typer.Typer(invoke_without_command=True)


@experiments_app.callback()
def experiments(context: typer.Context) -> None:
    """List the shipped experiments: what each asks, and how many jobs it takes."""
    if context.invoked_subcommand is None:
        from mimbench.experiments.listing import experiments_table

        Console().print(experiments_table())


@experiments_app.command("show")
def experiments_show(
    name: Annotated[str, typer.Argument(help="Of a shipped experiment.")],
) -> None:
    """Print the file of an experiment, to be copied and edited."""
    from mimbench.experiments import shipped

    typer.echo(shipped(name).read_text(encoding="utf-8"), nl=False)
