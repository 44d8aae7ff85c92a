"""What would settle a tie, in words: how many test images, and how many seeds."""

from __future__ import annotations

import math
from itertools import pairwise

from mimbench.power import MOST_SEEDS
from mimbench.report import text
from mimbench.report.tables import Column, Row, Table

FAR = 1e7  # beyond, a number of images is no plan


def pairs(table: Table, place: int, group: str = "") -> list[tuple[Row, Row]]:
    """(above, below) of neighbours of one column that tie, and of which something is known, best first.

    group: heading of the rows compared, "" where rows stand in none.
    """
    rows = ranked(table, place, group)
    return [
        (above, below)
        for above, below in pairwise(rows)
        if not (math.isnan(below.cells[place].images_needed) and math.isnan(below.cells[place].seeds_needed))
    ]


def ranked(table: Table, place: int, group: str = "") -> list[Row]:
    """The rows of a group that have a rank in one column, best first."""
    rows = [row for row in table.rows if row.cells[place].rank and row.group == group]
    return sorted(rows, key=lambda row: (-row.cells[place].value, row.variant))


def groups(table: Table) -> list[str]:
    """Headings of the groups, in order; one empty one where rows stand in none."""
    return list(dict.fromkeys(row.group for row in table.rows))


def sentence(table: Table, place: int, above: Row, below: Row) -> str:
    """What is too few for the two and what would probably do, as "mae and hpm: 359 test images …"."""
    column, cell = table.columns[place], below.cells[place]
    apart = _apart(column, above.cells[place].value - cell.value)
    said = []
    if not math.isnan(cell.images_needed):
        few, would = _counted(cell.images, "test image"), _many(cell.images_needed, FAR)
        said.append(f"{few} cannot separate {apart}; {would} would")
    if not math.isnan(cell.seeds_needed):
        few, would = _counted(len(cell.seeds), "seed"), _many(cell.seeds_needed, MOST_SEEDS)
        spreads = " and ".join(column.shown(row.cells[place].spread) for row in (above, below))
        what = "" if said else f" separate {apart}"
        said.append(f"{few} (spreads {spreads}) cannot{what}; {would} would")
    return f"{above.variant} and {below.variant}: " + ". ".join(said)


def _apart(column: Column, difference: float) -> str:
    """A difference of scores: "1.2 points", "0.03 points", "0.21 variance"."""
    if column.unit != "share":
        return f"{text.number(difference)} {column.metric}"
    points = 100 * difference
    return f"{points:.1f} points" if points >= 0.1 else f"{points:.1g} points"


def _counted(number: int, of: str) -> str:
    return f"{number:,} {of}{'s' if number != 1 else ''}"


def _many(number: float, most: float) -> str:
    """Two digits of a rough number, rounded up: "about 2,900"; above ``most``: "more than …"."""
    if number > most:
        return f"more than {most:,.0f}"
    digits = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return f"about {math.ceil(number / digits) * digits:,}"
