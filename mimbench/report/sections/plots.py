"""Results against what they cost."""

from __future__ import annotations

import math

from markupsafe import Markup

from mimbench.report import figures
from mimbench.report.costs import BY_KEY
from mimbench.report.pareto import front
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table

LISTED = 24  # names of a front in words
SAME = 1.05  # costs that lie no further apart
PLOTTED = 3  # protocols with a plot of their own


def draw(table: Table, surroundings: Surroundings) -> Markup:
    """Empty where fewer than two rows have a cost."""
    plots = _plots(table)
    return surroundings.render("plots.html", plots=plots, listed=LISTED) if plots else Markup("")


def _plots(table: Table) -> list[tuple[str, Markup, list[str]]]:
    """(title, drawing, names on its front): scores against computation, and for the first against time."""
    places = _most_different(table)[:PLOTTED]
    wanted = [(place, "pflops") for place in places] + [(place, "hours") for place in places[:1]]
    if _held_equal(table, "pflops"):
        wanted = [(place, "hours") for place in places]
    if table.setting.released:  # what an image takes is all that is known of their cost
        wanted = [(place, "encoder_gflops") for place in places if not _held_equal(table, "encoder_gflops")]
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
        methods = [point for point in points if point.role == "method"]
        best = [methods[i] for i in front([(point.x, point.y) for point in methods])]
        best = best if len(methods) > 1 else []
        drawn = figures.scatter(points, lines, x_label, name, column.unit == "share", best)
        if drawn:
            plots.append((f"{name} against {x_label}", drawn, [point.name for point in best]))
    return plots


def _held_equal(table: Table, key: str) -> bool:
    """Whether a budget fixed this cost: a front would then tell by what a last step rounds."""
    costs = [row.cost[key] for row in table.rows if row.role == "method" and row.cost[key] > 0]
    return len(costs) > 1 and max(costs) < SAME * min(costs)


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
