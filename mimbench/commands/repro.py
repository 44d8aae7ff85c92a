"""``mimbench report``, ``verify`` and ``compare``: for whoever doubts a number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mimbench.request import RESULTS
from mimbench.settings import split

Results = Annotated[Path, typer.Option(metavar="FOLDER", help="Results folder that ids are looked up in.")]
Shape = Annotated[str, typer.Option("--format", help="text or json.")]


def report(
    folder: Annotated[Path, typer.Argument(help="Results folder.")] = RESULTS,
    names: Annotated[
        list[str] | None, typer.Argument(help="Rows, or ids of requests, to tell of these alone.")
    ] = None,
    format: Annotated[str, typer.Option(help="Files to write: html, markdown, json.")] = "html,markdown,json",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; the results folder by default.")
    ] = None,
) -> None:
    """Write what was run, with what, at what cost, and how to run it again; with the field's checklist.

    The weights that are there are held against the sha256 in their records.
    """
    from mimbench.console import show_places
    from mimbench.repro.report import write_report

    paths = write_report(folder, names or (), split(format), out)
    show_places([(path.suffix.lstrip(".").upper(), path) for path in paths], Console())


def verify(
    record: Annotated[str, typer.Argument(help="JSON file of a record, or its id in the results folder.")],
    data: Annotated[
        str, typer.Option(metavar="SPECS", help="Where the record's data are; found by name by default.")
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Repeat the evaluation alone, on the weights in this results folder if their sha256 fits.",
        ),
    ] = None,
    given: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="Weights that the run was given (tokenizer, teacher, file:PATH); may repeat."
        ),
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the repetition here, and go on when stopped; else it is thrown away."
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also where today's code means something else by the record.")
    ] = False,
    micro_batch: Annotated[int | None, typer.Option(help="As the run was given it.")] = None,
    results: Results = RESULTS,
    format: Shape = "text",
) -> None:
    """Run a record again from scratch, and say: same, within interval, or different.

    Trains anew all that the record needs, from its content alone. Exit status: 0 for the same bit for bit
    and for a number within the record's interval, 1 for a different one and for a record that contradicts
    itself, 2 where it cannot be repeated here (other data, another version of a method or protocol).
    """
    from mimbench.console import watch_on
    from mimbench.repro import console as shown
    from mimbench.repro.verify import verify as check

    shown.check_format(format)
    watch = watch_on(Console(stderr=True))
    try:
        found = check(
            record,
            results=results,
            data=split(data),
            weights=weights,
            given=given,
            out=out,
            anyway=anyway,
            micro_batch=micro_batch,
            watch=watch,
        )
    finally:
        watch.close()
    show = shown.show_json if format == "json" else shown.show_verification
    show(found, Console())  # type: ignore[operator]
    raise typer.Exit(1 if found.answer == "different" else 0)


def compare(
    a: Annotated[str, typer.Argument(help="A record (JSON file or id) or a results folder.")],
    b: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    results: Results = RESULTS,
    format: Shape = "text",
) -> None:
    """Say in what two records or two results folders differ, and whether that explains their gap."""
    from mimbench.repro import console as shown
    from mimbench.repro.compare import Boards
    from mimbench.repro.compare import compare as look

    shown.check_format(format)
    found = look(a, b, results)
    if format == "json":
        shown.show_json(found, Console())
    elif isinstance(found, Boards):
        shown.show_boards(found, Console())
    else:
        shown.show_comparison(found, Console())
