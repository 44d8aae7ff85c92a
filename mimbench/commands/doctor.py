"""``mimbench doctor``: the installation, and weights."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

doctor_app = typer.Typer(invoke_without_command=True)


@doctor_app.callback()
def doctor(context: typer.Context) -> None:
    """Say what is installed, which device and precision runs use, what is missing and how to get it."""
    from mimbench.catalogue import doctor_report

    if context.invoked_subcommand is None:
        report, healthy = doctor_report()
        Console().print(report)
        raise typer.Exit(0 if healthy else 1)


@doctor_app.command()
def weights(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file; or a name, as --methods of a run takes it."),
    ],
    layout: Annotated[
        str, typer.Option("--as", metavar="NAME", help="For a foreign file: the entry whose layout it has.")
    ] = "",
) -> None:
    """Say what of a weights file is used, dropped and fresh, and what its tokens look like."""
    from mimbench.console import watch_on
    from mimbench.weights.examined import examine, told

    watch = watch_on(Console(stderr=True))
    try:
        examined = examine(source, layout, watch.progress)
    finally:
        watch.close()
    Console().print(told(examined))
    raise typer.Exit(1 if examined.audit.flags else 0)
