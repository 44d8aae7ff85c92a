"""A table for the terminal: what fits its width, the rest is on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from mimbench.report.costs import BY_KEY, SPENT
from mimbench.report.legend import EDGE, FLAG, differences, remarks, signs
from mimbench.report.tables import Column, Row, Table
from mimbench.report.text import HOLE, number

# Cost columns by their keys and headings; where the terminal is narrow, the last go first.
COSTS = (("hours", "time"), ("images_per_second", ""), ("pflops", ""), ("memory_gib", ""))
COSTS_RELEASED = (("parameters_m", "params"), ("encoder_gflops", "encoder"))
# (cost columns, width of names, figures below each other), the first that fits is drawn.
PLANS = ((4, 60, False), (4, 24, False), (3, 24, False), (2, 20, False), (1, 16, False), (1, 16, True))


ROWS = 100  # at most; whoever wants more looks at the page


def draw(table: Table, width: int = 100) -> Group:
    """Heading, table and legend; the table at its richest that fits ``width`` columns.

    Where nothing fits, protocols are spread over several tables below each other, and wrapped at last.
    """
    heading = Text("\n".join([text for text in (table.label, differences(table)) if text]), style="bold")
    return Group(heading, *_fitting(table, width), Text(_legend(table), style="dim"))


def _fitting(table: Table, width: int) -> list[RichTable]:
    places = list(range(len(table.columns)))
    for plan in PLANS:
        drawn = _draw(table, places, *plan)
        if _width(drawn) <= width:
            return [drawn]
    spread: list[RichTable] = []
    for pieces in range(1, max(len(places), 1) + 1):  # below each other
        size = max(1, math.ceil(len(places) / pieces))
        for costs in (1, 0):  # beside the first piece
            spread = [
                _draw(table, places[start : start + size], 0 if start else costs, 16, True)
                for start in range(0, max(len(places), 1), size)
            ]
            if max(map(_width, spread)) <= width:
                return spread
    return spread


def _width(drawn: RichTable) -> int:
    unlimited = Console(width=10_000)
    return Measurement.get(unlimited, unlimited.options, drawn).maximum


def _draw(table: Table, places: Sequence[int], costs: int, names: int, stacked: bool) -> RichTable:
    """The columns ``places`` of the table."""
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        show_edge=False,
    )
    drawn.add_column("method", overflow="fold", min_width=8, max_width=names)
    for place in places:
        drawn.add_column(_head(table.columns[place], stacked), no_wrap=not stacked, overflow="fold")
    wanted = [(SPENT.key, SPENT.title.lower())] if table.level and places[:1] == [0] else []
    wanted += (COSTS_RELEASED if table.setting.released else COSTS)[:costs]
    shown = [(key, title, *BY_KEY[key].unit(r.cost[key] for r in table.rows)) for key, title in wanted]
    for _, title, _, unit in shown:
        drawn.add_column(f"{title}\n{unit}".strip(), justify="right", no_wrap=True)
    for body in table.bodies:
        if body.heading and body.start < ROWS:
            drawn.add_row(Text(body.heading), style="italic")
        for row in body.rows[: max(0, ROWS - body.start)]:
            drawn.add_row(
                _name(row, table),
                *(_cell(table, row, place, stacked) for place in places),
                *(Text(number(factor * row.cost[key])) for key, _, factor, _ in shown),
                style="dim" if body.older or row.role in ("floor", "ceiling") else None,
            )
    return drawn


def _head(column: Column, stacked: bool) -> Text:
    """Label, what to know before comparing, metric; broken to the width of the numbers where they are."""
    remarks: list[str] = list(column.remarks)
    if stacked:  # "on imagefolder:" above "flowers"
        pieces = [piece for remark in remarks for piece in remark.replace(":", ":\n").split("\n")]
        remarks = [part for piece in pieces for part in wrap(piece, 16)]
    return Text("\n".join([column.label, *remarks, column.heading]))


def _name(row: Row, table: Table) -> Text:
    marks = table.marks(row)
    flag = FLAG if table.row_flags(row) else ""
    return Text(row.variant + flag + (f" ({', '.join(marks)})" if marks else ""))  # Text: names are no markup


def _cell(table: Table, row: Row, place: int, stacked: bool) -> Text:
    cell, column = row.cells[place], table.columns[place]
    if cell.state != "value":
        return Text(
            "failed, see below" if cell.state == "failed" else f"{HOLE} {cell.reason}", style="yellow"
        )
    text = Text()
    if column.ranked and (cell.rank or not stacked):
        text.append(f"{cell.rank:<2} ", style="cyan")
    text.append(f"{column.shown(cell.value):>5}", style="bold")
    text.append((EDGE if cell.edges else "") + (FLAG if table.cell_flags(row, place) else ""))
    if len(cell.seeds) > 1:
        text.append(f" ±{column.shown(cell.spread)}")
    if math.isnan(cell.low):
        return text
    text.append("\n" if stacked else " ")
    return text.append(f"[{column.shown(cell.low)}, {column.shown(cell.high)}]")


def _legend(table: Table) -> str:
    lines = signs(table)
    if len(table.rows) > ROWS:
        lines.append(f"{len(table.rows) - ROWS} more rows are on the page")
    return "\n".join(["; ".join(lines), *remarks(table)]).strip()
