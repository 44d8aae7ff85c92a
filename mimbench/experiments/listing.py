"""The shipped experiments, drawn for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench import experiments
from mimbench.data import open_dataset
from mimbench.plan import make_plan
from mimbench.precision import resolve_precision
from mimbench.request import Request


def experiments_table() -> RenderableType:
    """Each with what it asks, its rows, seeds and budget, and how many jobs it takes on its own data."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("question", overflow="fold")
    table.add_column("jobs", justify="right")
    for name in experiments.names():
        request, about = experiments.read(name)
        asked = Group(
            Text(about.title, style="bold"), Text(about.question), Text(_amount(request), style="dim")
        )
        table.add_row(Text(name, style="bold"), asked, str(jobs(request)))
    how = Text.assemble(
        ("mimbench run NAME", "bold"),
        " runs one, with any option of run after it; ",
        ("mimbench experiments show NAME", "bold"),
        " prints its file, to be copied and edited.",
    )
    return Group(table, how)


def jobs(request: Request) -> int:
    """How many jobs a request takes where nothing is done yet."""
    data = [open_dataset(spec, image_size=request.image_size) for spec in dict.fromkeys(request.data)]
    return len(make_plan(request, data, resolve_precision(request.precision)))


def _amount(request: Request) -> str:
    rows, seeds = len(request.methods), len(request.seeds)
    return (
        f"{rows} rows, {seeds} seed{'s' * (seeds != 1)}, {', '.join(request.protocol)} on "
        f"{', '.join(request.data)}; {request.budget or 'the usual budget'} each"
    )
