"""How the loss went down in pre-training, a small drawing each row."""

from __future__ import annotations

from markupsafe import Markup

from mimbench.report import figures
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Row, Table

CURVES = 24  # small multiples at most; beyond, they are no longer compared by eye


def draw(table: Table, surroundings: Surroundings) -> Markup:
    """Empty where nothing of the table was trained."""
    rows = [row for row in table.rows if row.curves]
    if not rows:
        return Markup("")
    curves = [(row.variant, figures.curve(_losses(row))) for row in rows[:CURVES]]
    return surroundings.render("curves.html", curves=curves, more=len(rows) - CURVES)


def _losses(row: Row) -> list[list[tuple[float, float]]]:
    return [
        [(point["progress"], point["loss"]) for point in run if "progress" in point and "loss" in point]
        for run in row.curves.values()
    ]
