"""A table for the terminal: what fits its width, the rest is on the page."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from mimbench.report.costs import BY_KEY
from mimbench.report.tables import Cell, Row, Table
from mimbench.report.text import HOLE, number, percent

# Cost columns by their keys and headings; where the terminal is narrow, the last go first.
COSTS = (("hours", "time"), ("images_per_second", ""), ("pflops", ""), ("memory_gib", ""))
# (cost columns, width of names, figures below each other), the first that fits is drawn.
PLANS = ((4, 60, False), (4, 24, False), (3, 24, False), (2, 20, False), (1, 16, False), (1, 16, True))


ROWS = 100  # at most; whoever wants more looks at the page


def draw(table: Table, width: int = 100) -> Group:
    """Heading, table and legend; the table at its richest that fits ``width`` columns, or else wrapped."""
    heading = Text("\n".join([table.label, *_differences(table)]), style="bold")
    return Group(heading, _fitting(table, width), Text(_legend(table), style="dim"))


def _fitting(table: Table, width: int) -> RichTable:
    unlimited = Console(width=10_000)
    for costs, names, stacked in PLANS:
        drawn = _draw(table, costs, names, stacked)
        if Measurement.get(unlimited, unlimited.options, drawn).maximum <= width:
            return drawn
    return _draw(table, 0, 16, True)


def _draw(table: Table, costs: int, names: int, stacked: bool) -> RichTable:
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        show_edge=False,
    )
    drawn.add_column("method", overflow="fold", min_width=8, max_width=names)
    for column in table.columns:
        drawn.add_column(Text(f"{column.label}\n{_metric(column.metric)}"), no_wrap=not stacked)
    shown = [(key, title, *BY_KEY[key].unit(r.cost[key] for r in table.rows)) for key, title in COSTS[:costs]]
    for _, title, _, unit in shown:
        drawn.add_column(f"{title}\n{unit}".strip(), justify="right", no_wrap=True)
    for row in table.rows[:ROWS]:
        drawn.add_row(
            _name(row),
            *(_cell(cell, stacked) for cell in row.cells),
            *(Text(number(factor * row.cost[key])) for key, _, factor, _ in shown),
            style="dim" if row.older or row.role in ("floor", "ceiling") else None,
        )
    return drawn


def _metric(metric: str) -> str:
    return f"{metric} %" if metric == "top1" else metric


def _name(row: Row) -> Text:
    marks = [row.role] if row.role != "method" else []
    marks += [f"older version {row.version}"] if row.older else []
    return Text(row.variant + (f" ({', '.join(marks)})" if marks else ""))  # Text: names are no markup


def _cell(cell: Cell, stacked: bool) -> Text:
    if cell.state != "value":
        return Text(
            "failed, see below" if cell.state == "failed" else f"{HOLE} {cell.reason}", style="yellow"
        )
    text = Text()
    text.append(f"{cell.rank:<2} " if not stacked or cell.rank else "", style="cyan")
    if cell.hits is None:
        return text.append(number(cell.value), style="bold")
    text.append(f"{percent(cell.value):>5}", style="bold")
    text.append("†" if cell.edges else "")
    if len(cell.seeds) > 1:
        text.append(f" ±{percent(cell.spread)}")
    text.append("\n" if stacked else " ")
    return text.append(f"[{percent(cell.low)}, {percent(cell.high)}]")


def _differences(table: Table) -> list[str]:
    if not table.differs:
        return []
    return [
        "differs from the other tables in " + ", ".join(f"{name} ({value})" for name, value in table.differs)
    ]


def _legend(table: Table) -> str:
    cells = [cell for row in table.rows for cell in row.cells]
    images = max((cell.images for cell in cells), default=0)
    lines = []
    if images:
        lines.append(f"[low, high]: 95 % interval over the {images} test images")
    if any(len(cell.seeds) > 1 for cell in cells):
        lines.append(f"±: standard deviation over {len(table.seeds)} seeds")
    if any(cell.rank.endswith("=") for cell in cells):
        lines.append("=: a tie, the paired test cannot tell them apart (p ≥ 0.05)")
    if any(cell.edges for cell in cells):
        lines.append("†: chosen at the edge of what was tried")
    if any(row.role == "floor" for row in table.rows):
        lines.append("floor: no pre-training")
    if any(row.role == "ceiling" for row in table.rows):
        lines.append("ceiling: trained with the labels")
    if len(table.rows) > ROWS:
        lines.append(f"{len(table.rows) - ROWS} more rows are on the page")
    failed = [f"{name} failed: {error}" for name, error, _ in table.failures]
    return "\n".join(["; ".join(lines), *failed]).strip()
