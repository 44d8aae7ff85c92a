"""A card for each method of the page: where it is from, where the survey files it, how sure its loss is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from mimbench.report import text
from mimbench.report.cards import MethodCard
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Row, Table

LISTED = 12  # variants of a method whose settings are written out


def draw(tables: Sequence[Table], surroundings: Surroundings) -> Markup:
    """Empty where no record keeps a card. Methods stand in the order of the tables."""
    rows: dict[MethodCard, list[Row]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            if row.card is not None:
                rows[row.card].append(row)
    if not rows:
        return Markup("")
    without = {row.variant for table in tables for row in table.rows if row.card is None}
    return surroundings.render(
        "cards.html",
        cards=[(card, _settings(own), _given(own), _recipes(own)) for card, own in rows.items()],
        listed=LISTED,
        without=sorted(without),
    )


def _settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(variant, its settings in words), each once."""
    found = {(row.variant, text.plain(json.loads(row.settings))) for row in rows}
    return sorted(pair for pair in found if pair[1])


def _given(rows: Sequence[Row]) -> list[str]:
    """The tokenizers and teachers that its rows learnt from."""
    return sorted({row.sources for row in rows if row.sources})


def _recipes(rows: Sequence[Row]) -> list[str]:
    """Where the recipes that its rows were trained by are from."""
    return list(dict.fromkeys(str(row.recipe["source"]) for row in rows if "source" in row.recipe))
