"""``mimbench published``: what papers report, with their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def published(
    methods: Annotated[str, typer.Option(metavar="NAMES", help="Only these: 'mae,beit'.")] = "",
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="Only this: 'linprobe', or a recipe, 'linprobe:mae'.")
    ] = "",
    metric: Annotated[str, typer.Option(metavar="NAME", help="Only this, such as top1 or miou.")] = "",
    format: Annotated[str, typer.Option(metavar="table|csv|markdown", help="How to print.")] = "table",
    file: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Your own figures, in the columns of --format csv.")
    ] = None,
) -> None:
    """Print published figures with their sources; mimbench did not measure them."""
    from mimbench.published import find, load
    from mimbench.published.tell import told

    keys = [name.strip() for name in methods.split(",") if name.strip()]
    said = told(find(load(file), methods=keys, protocol=protocol, metric=metric), format)
    if isinstance(said, str):
        typer.echo(said, nl=False)
    else:
        Console().print(said)
