"""The leaderboard as one self-contained HTML page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mimbench.report import figures, sections, text
from mimbench.report.html import environment, sealed
from mimbench.report.sections import Surroundings
from mimbench.report.tables import Table

FOLDED = 4  # with more columns than this, what is said of each is folded away
WIDE = 10  # with more columns of numbers than this, a table is printed small
MOST_ROWS = 300  # of a table that are laid out before somebody asks for all; page.js counts on it
TITLED = ("data", "backbone", "budget", "weights")  # what a table differs in that its title says anyway
FILTERED = ("scheme", "masking", "target")  # criteria of the survey's taxonomy that rows are filtered by


def html(found: Sequence[Table], folders: Path | Sequence[Path], out: Path) -> str:
    """The page of ``found``, to be written into ``out``; folders: of the results, one or several."""
    templates = environment()
    templates.filters |= {"short": text.short, "breakable": text.breakable}
    style, script = (
        templates.get_template(name).render(most_rows=MOST_ROWS) for name in ("page.css", "page.js")
    )
    given = [folders] if isinstance(folders, Path) else folders
    files = {record: file for table in found for record, file in table.files.items()}
    surroundings = Surroundings(templates, given, _links(files, out), partial(_address, out))
    return sealed(
        templates,
        "page.html",
        style=style,
        script=script,
        views=[_view(table, number, surroundings) for number, table in enumerate(found, start=1)],
        any_released=any(table.setting.released for table in found),
        any_older=any(body.older for table in found for body in table.bodies),
        criteria=_criteria(found),
        folded=FOLDED,
        most_rows=MOST_ROWS,
        all_costs=list(dict.fromkeys(cost for table in found for cost in table.costs)),
        link=surroundings.link,
        closing=sections.of_page(found, surroundings),
        newest=max((row.finished for table in found for row in table.rows), default=""),
        percent=text.percent,
        number=text.number,
        probability=text.probability,
        bar=figures.interval_bar,
        hole=text.HOLE,
    )


def _links(files: Mapping[str, str], out: Path) -> Callable[[str], str]:
    """From a record's id to its address, relative to the page so that the folder can be moved or served."""
    base = cache(partial(_address, out))  # of few folders

    def link(record: str) -> str:
        path = Path(files[record])
        return f"{base(path.parent)}/{quote(path.name, safe='')}"

    return link


def _address(out: Path, path: Path) -> str:
    """From a page in the folder ``out`` to a file."""
    try:
        return quote(Path(os.path.relpath(path, out)).as_posix())
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()


def _view(table: Table, number: int, surroundings: Surroundings) -> dict[str, Any]:
    """What the template needs of a table beyond its rows."""
    costs = [
        (cost, *cost.unit(row.cost[cost.key] for row in table.rows))
        for cost in table.costs
        if any(row.cost[cost.key] > 0 for row in table.rows)
    ]
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
        "wide": len(table.columns) * (2 if len(table.seeds) > 1 else 1) + len(costs) > WIDE,
        "interpolated": any(
            row.release.image_size not in (None, row.setting.image_size) for row in table.rows if row.release
        ),
        "devices": sorted({row.device for row in table.rows if row.device}),
        "sections": sections.of_table(table, surroundings),
    }


def _criteria(found: Sequence[Table]) -> list[tuple[str, list[str]]]:
    """(criterion of the survey's taxonomy, its classes among these rows) where they tell rows apart."""
    cards = {row.card for table in found for row in table.rows if row.card is not None}
    criteria = []
    for criterion in FILTERED:
        classes = sorted({name for card in cards for name in card.filed(criterion)} - {"none"})
        if len(classes) > 1:
            criteria.append((criterion, classes))
    return criteria


def _title(table: Table) -> str:
    """Names the table, and what sets it apart where data, backbone and budget do not."""
    held = table.held
    what = "released weights" if table.setting.released else held["budget"]
    apart = [f"{name} {value}" for name, value in table.differs if name not in TITLED]
    return " · ".join([held["data"], held["backbone"], what, *apart])


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
