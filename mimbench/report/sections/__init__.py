"""What stands on the page around its tables: below each one, and below all of them.

A section is a module with one function, ``draw(table, surroundings)`` below a table or
``draw(tables, surroundings)`` below all of them, which returns its HTML, headed and escaped by a template
of its own, or nothing where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from mimbench.report.sections import across, cards, curves, experiment, pictures, plots, power, published
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table

__all__ = ["Surroundings", "of_page", "of_table"]

BELOW_TABLE: tuple[Callable[[Table, Surroundings], Markup], ...] = (
    power.draw,
    plots.draw,
    curves.draw,
    published.draw,
)
BELOW_ALL: tuple[Callable[[Sequence[Table], Surroundings], Markup], ...] = (
    experiment.draw,
    across.draw,
    pictures.draw,
    cards.draw,
)


def of_table(table: Table, surroundings: Surroundings) -> list[Markup]:
    """The sections below one table, in the order in which they are read."""
    return [drawn for draw in BELOW_TABLE if (drawn := draw(table, surroundings))]


def of_page(tables: Sequence[Table], surroundings: Surroundings) -> list[Markup]:
    """The sections below all tables."""
    return [drawn for draw in BELOW_ALL if (drawn := draw(tables, surroundings))]
