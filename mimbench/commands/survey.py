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


@taxonomy_app.command("cluster")
def cluster(
    papers: Annotated[
        Path, typer.Argument(help="CSV with the columns title and abstract, or BibTeX with such fields.")
    ],
    clusters: Annotated[
        int | None, typer.Option(min=2, help="How many; by default where papers' places are most stable.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to.")] = Path("clusters"),
    seed: Annotated[int, typer.Option(min=0, help="Of k-means and of the shuffled words.")] = 0,
    encoding: Annotated[str, typer.Option(help="Of the file.")] = "utf-8",
) -> None:
    """Repeat the survey's automatic clustering on a bibliography, and say how far it can be trusted.

    TF-IDF of title and abstract and Ward linkage, as in the survey; then every other n-gram range,
    weighting, linkage and algorithm, and the same on shuffled words. Columns arxiv and label are used where
    there are any.
    """
    from mimbench.console import show_places
    from mimbench.survey import bibliography, output
    from mimbench.survey.study import study

    found = bibliography.read(papers, encoding)
    told = Console(stderr=True)
    result = study(found, clusters, seed, report=lambda step: told.print(step, style="dim", markup=False))
    Console().print(output.console(result))
    show_places(output.write(result, out), Console())
