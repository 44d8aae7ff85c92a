"""``mimbench taxonomy``: the survey's classes, and its automatic clustering on a bibliography of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

taxonomy_app = typer.Typer(invoke_without_command=True)

FORMATS = ("table", "csv", "markdown", "html", "png")


@taxonomy_app.callback()
def taxonomy(
    context: typer.Context,
    format: Annotated[str, typer.Option(metavar="|".join(FORMATS), help="What to draw it as.")] = "table",
    all: Annotated[
        bool, typer.Option("--all", help="With the works that mimbench does not implement.")
    ] = False,
    by: Annotated[
        str, typer.Option(metavar="ROWS,COLUMNS", help="The two criteria of the matrix.")
    ] = "masking,target",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to; html and png go to taxonomy.html and .png by default."),
    ] = None,
) -> None:
    """Draw the methods by the survey's criteria: a table, and a matrix of two of them (not in csv)."""
    if context.invoked_subcommand is not None:
        return
    from mimbench.errors import unknown
    from mimbench.survey import table
    from mimbench.survey.write import written

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    table.crossing(by)
    rows = table.filed(all)
    if format == "table" and out is None:
        from mimbench.survey.draw import console

        Console().print(console(rows, by))
        return
    content = written(rows, format, by)
    if out is None and format in ("csv", "markdown"):
        typer.echo(content.decode("utf-8-sig"), nl=False)
        return
    from mimbench.console import show_places
    from mimbench.files import make_folder, write_atomically

    path = out or Path(f"taxonomy.{format}")
    make_folder(path.parent)
    write_atomically(path, lambda file: file.write(content))
    show_places([(format, path)], Console())
