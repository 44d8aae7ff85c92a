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
from mimbench.weights.entries import entries_of
from mimbench.weights.release import Release

LISTED = 12  # variants of a method whose settings are written out, and names of its released weights


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
        cards=[
            (card, _settings(own), _given(own), _recipes(own), _released(own), _catalogue(card, own))
            for card, own in rows.items()
        ],
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


def _released(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(variant, address of its file or "", facts) of its rows that were trained elsewhere."""
    found = {row.variant: row.release for row in rows if row.release is not None}
    return [
        (variant, release.url if release.url.startswith("https://") else "", _facts(release))
        for variant, release in found.items()
    ]


def _facts(release: Release) -> list[tuple[str, str]]:
    """What is known of released weights, in words."""
    gone = dict.fromkeys(release.dropped.values())
    fresh = dict.fromkeys(release.fresh.values())
    told = [
        ("pre-trained on", release.trained_on or "not known"),
        ("on labels", "yes" if release.labels else "no" if release.external != "labels" else "not itself"),
        ("learned from", release.learned_from),
        ("images", f"{release.image_size} px" if release.image_size else ""),
        ("licence", release.licence or "not known"),
        ("file", release.file),
        ("sha256", release.file_sha256),
        ("read as", release.layout),
        ("left out", "; ".join(gone)),
        ("not in the file", "; ".join(fresh)),
        ("facts from", release.source),
        ("notes", release.notes),
    ]
    return [(name, words) for name, words in told if words]


def _catalogue(card: MethodCard, rows: Sequence[Row]) -> list[str]:
    """Names of the method's released weights that are no rows here."""
    here = {row.release.name for row in rows if row.release is not None}
    names = [entry.name for entry in entries_of(card.key) if entry.name not in here]
    return [*names[:LISTED], *([f"{len(names) - LISTED} more"] if len(names) > LISTED else [])]


def _recipes(rows: Sequence[Row]) -> list[str]:
    """Where the recipes that its rows were trained by are from."""
    return list(dict.fromkeys(str(row.recipe["source"]) for row in rows if "source" in row.recipe))
