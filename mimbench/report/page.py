"""The leaderboard as one self-contained HTML page: no network, no foreign script, names cannot inject.

Everything variable goes through Jinja2's autoescape. A content security policy allows the page's own
style and script by their hashes and nothing else, not even a style attribute.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mimbench.report import figures, text
from mimbench.report.costs import BY_KEY, COSTS
from mimbench.report.tables import Row, Table

CURVES = 24  # small multiples at most; beyond, they are no longer compared by eye
PLOTTED = 3  # protocols with a plot of their own


def html(found: Sequence[Table], folder: Path, out: Path) -> str:
    """The page of ``found``, to be written into ``out``; links lead to the records below ``folder``."""
    environment = Environment(
        loader=PackageLoader("mimbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (environment.get_template(name).render() for name in ("page.css", "page.js"))
    page = environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
        views=[_view(table, number) for number, table in enumerate(found, start=1)],
        any_older=any(row.older for table in found for row in table.rows),
        all_costs=COSTS,
        link=_links(folder, out),
        newest=max((row.finished for table in found for row in table.rows), default=""),
        percent=text.percent,
        number=text.number,
        probability=text.probability,
        bar=figures.interval_bar,
        hole=text.HOLE,
    )
    # A third of all nodes would be line ends between tags. In names and values ">" is "&gt;".
    return re.sub(r">\n+<", "><", page)


def _source_hash(content: str) -> str:
    """What a content security policy knows an inline element by (CSP Level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _links(folder: Path, out: Path) -> Callable[[str], str]:
    """From a record's id to its address, relative to the page so that the folder can be moved or served."""
    inner = folder / "records" if (folder / "records").is_dir() else folder
    try:
        base = quote(Path(os.path.relpath(inner, out)).as_posix())
    except ValueError:  # on another drive of Windows
        base = inner.resolve().as_uri()
    return lambda record: f"{base}/{quote(record, safe='')}.json"


def _view(table: Table, number: int) -> dict[str, Any]:
    """What the template needs of a table beyond its rows."""
    costs = [
        (cost, *cost.unit(row.cost[cost.key] for row in table.rows))
        for cost in COSTS
        if any(row.cost[cost.key] > 0 for row in table.rows)
    ]
    curves = [(row.variant, figures.curve(_losses(row))) for row in table.rows if row.curves]
    return {
        "number": number,
        "table": table,
        "title": _title(table),
        "several_seeds": len(table.seeds) > 1,
        "width": 2 if len(table.seeds) > 1 else 1,  # columns that a protocol takes
        "bounds": [_bounds(table, place) for place in range(len(table.columns))],
        "fields": [text.plain(json.loads(column.fields)) for column in table.columns],
        "candidates": [
            max((row.cells[place].candidates for row in table.rows), default=0)
            for place in range(len(table.columns))
        ],
        "first": next((place for place, column in enumerate(table.columns) if column.ranked), None),
        "images": [
            max((row.cells[place].images for row in table.rows), default=0)
            for place in range(len(table.columns))
        ],
        "figures": [(column.title, _figures(table, place)) for place, column in enumerate(table.columns)],
        "edges": [
            (row.variant, column.title, edge)
            for row in table.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
            for edge in cell.edges
        ],
        "costs": costs,
        "devices": sorted({row.device for row in table.rows if row.device}),
        "plots": _plots(table),
        "curves": curves[:CURVES],
        "more_curves": len(curves) - CURVES,
    }


def _title(table: Table) -> str:
    """Names the table, and what sets it apart where data, backbone and budget do not."""
    setting = table.setting
    apart = [f"{name} {value}" for name, value in table.differs if name not in ("data", "backbone", "budget")]
    return " · ".join([setting.data, setting.backbone, str(setting.budget), *apart])


def _bounds(table: Table, place: int) -> tuple[float, float]:
    """From the lowest to the highest end of a column's intervals: one scale for all its bars."""
    cells = [row.cells[place] for row in table.rows if not math.isnan(row.cells[place].low)]
    return min((c.low for c in cells), default=0.0), max((c.high for c in cells), default=1.0)


def _figures(table: Table, place: int) -> list[tuple[str, dict[str, str]]]:
    """(row, everything that was measured by name) of a column, where that is more than its one number."""
    found = [(row.variant, row.cells[place].metrics) for row in table.rows if not row.older]
    names = list(dict.fromkeys(name for _, metrics in found for name in metrics))
    if len(names) < 2:
        return []
    return [
        (variant, {name: text.number(metrics.get(name, math.nan)) for name in names})
        for variant, metrics in found
        if metrics
    ]


def _losses(row: Row) -> list[list[tuple[float, float]]]:
    return [
        [(point["progress"], point["loss"]) for point in run if "progress" in point and "loss" in point]
        for run in row.curves.values()
    ]


def _plots(table: Table) -> list[tuple[str, Markup]]:
    """Scores against computation, a plot a protocol that ranks, and against time for the first."""
    wanted = [(place, "pflops") for place in _most_different(table)[:PLOTTED]]
    wanted += [(place, "hours") for place, _ in wanted[:1]]
    plots = []
    for place, key in wanted:
        column, cost = table.columns[place], BY_KEY[key]
        factor, unit = cost.unit(row.cost[key] for row in table.rows)
        x_label = f"{cost.title.lower()} in {unit}"
        rows = [r for r in table.rows if not r.older and not math.isnan(r.cells[place].value)]
        points = [
            figures.Point(
                r.variant,
                r.role,
                factor * r.cost[key],
                r.cells[place].value,
                r.cells[place].low,
                r.cells[place].high,
            )
            for r in rows
            if r.cost[key] > 0
        ]
        lines = [(r.variant, r.cells[place].value) for r in rows if r.role == "floor" and not r.cost[key] > 0]
        name = f"{column.title} {column.heading}"
        drawn = figures.scatter(points, lines, x_label, name, column.unit == "share")
        if drawn:
            plots.append((f"{name} against {x_label}", drawn))
    return plots


def _most_different(table: Table) -> list[int]:
    """Places of the columns that rank: first one of each metric on each data set, then the others."""
    seen: set[tuple[str, str]] = set()
    first: list[int] = []
    others: list[int] = []
    for place, column in enumerate(table.columns):
        if column.ranked:
            (others if (column.metric, column.tested_on) in seen else first).append(place)
            seen.add((column.metric, column.tested_on))
    return first + others
