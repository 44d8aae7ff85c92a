"""How many test images, or seeds, would settle the ties of a table."""

from __future__ import annotations

from markupsafe import Markup

from mimbench import stats
from mimbench.power import POWER
from mimbench.report import ties
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table

SHOWN = 4  # of each column, the best; all are in the CSV


def draw(table: Table, surroundings: Surroundings) -> Markup:
    """Empty where nothing ties, or nothing is known of what does."""
    columns = []
    for place, column in enumerate(table.columns):
        for group in ties.groups(table):
            pairs = ties.pairs(table, place, group)
            if pairs:
                title = f"{column.title}, {group}" if group else column.title
                sentences = [ties.sentence(table, place, *pair) for pair in pairs[:SHOWN]]
                columns.append((title, len(ties.ranked(table, place, group)), sentences, len(pairs) - SHOWN))
    if not columns:
        return Markup("")
    return surroundings.render("power.html", columns=columns, alpha=stats.ALPHA, power=POWER)
