"""``mimbench leaderboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mimbench.request import RESULTS


def leaderboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Results folders; mimbench-results by default."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Columns that come first and sort: 'linprobe' or 'knn on DATA'."),
    ] = "",
    at: Annotated[
        str,
        typer.Option(
            metavar="equal-flops|equal-hours|equal-epochs",
            help="Compare runs of different budgets at one cost: the largest that every method has reached, "
            "or the one given as in equal-flops=1e15.",
        ),
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            metavar="FIELDS",
            help="Put rows in groups: external (what pre-training is given), backbone, budget, image_size, "
            "recipe, batch_size, precision or role.",
        ),
    ] = "",
    format: Annotated[
        str, typer.Option(metavar="NAMES", help="Files to write, of csv, html, latex and markdown.")
    ] = "csv,html",
    protocol: Annotated[
        str, typer.Option(metavar="NAMES", help="Only these columns, named as for --by; all by default.")
    ] = "",
    seeds: Annotated[str, typer.Option(metavar="NUMBERS", help="Only these seeds; all by default.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write the files; by default the results folder."),
    ] = None,
) -> None:
    """Print the tables of results folders and write them as files; records are only read."""
    from mimbench.board import draw
    from mimbench.console import show_tables

    given = folders or [RESULTS]
    tables, files = draw(given, format, out, by=by, at=at, group=group, protocol=protocol, seeds=seeds)
    show_tables(tables, given, files, Console())
