"""What stands below a table wherever it is shown as text: what its signs mean, what to know of it."""

from __future__ import annotations

import math

from mimbench.report import ties
from mimbench.report.tables import Table

EDGE, FLAG, TIE = "†", "‡", "="
RANDOM = ", raw pixels and each architecture with random weights"
RELEASED = (
    "Weights as others released them, pre-trained on the data and for as long as stands beside each name; "
    "what that cost is not known here."
)
UNLEVELLED = "They stand at no level of cost, therefore."


def signs(table: Table) -> list[str]:
    """What the signs mean that the table has, each "sign: meaning"."""
    cells = [cell for row in table.rows for cell in row.cells]
    images = {cell.images for cell in cells if not math.isnan(cell.low)}
    found = []
    if images:
        found.append(f"[low, high]: 95 % interval over the {_counted(images)}test images")
    if any(len(cell.seeds) > 1 for cell in cells):
        what = f"{len(table.seeds)} seeds"
        if table.setting.released:  # random floors alone are drawn anew
            what += " of the evaluation"
        found.append(f"±: standard deviation over {what}")
    if any(cell.rank.endswith(TIE) for cell in cells):
        found.append(
            f"{TIE}: a tie, the paired test cannot tell them apart (p ≥ 0.05, corrected for how many there "
            "are)"
        )
    if any(cell.edges for cell in cells):
        found.append(f"{EDGE}: chosen at the edge of what was tried")
    if any(row.role == "floor" for row in table.rows):
        found.append(f"floor: no pre-training{RANDOM if table.setting.released else ''}")
    if any(row.role == "ceiling" for row in table.rows):
        found.append("ceiling: trained with the labels")
    if any(row.role == "method" and row.external == "labels" for row in table.rows):
        found.append("labels: trained on labels, so it does not compare with rows that saw none")
    return found


def differences(table: Table) -> str:
    """In what it differs from the tables beside it; "" for a single one."""
    named = ", ".join(f"{name} ({value})" for name, value in table.differs)
    return f"Differs from the other tables in {named}" if named else ""


def remarks(table: Table) -> list[str]:
    """Sentences on the cost at which it compares, its ties, its flags and what failed."""
    found = [table.level.rule] if table.level else []
    found += [RELEASED] if table.setting.released else []
    found += [UNLEVELLED] if table.unlevelled else []
    found += [
        f"{column.title}: {ties.sentence(table, place, *pairs[0])}"
        for place, column in enumerate(table.columns)
        for group in ties.groups(table)
        if (pairs := ties.pairs(table, place, group))
    ][:1]  # the page has more
    found += [f"{FLAG} {whom}: {sentence}" for whom, sentence in table.flags]
    return found + [f"{name} failed: {error}" for name, error, _ in table.failures]


def _counted(images: set[int]) -> str:
    """How many images, where all columns have the same."""
    return f"{next(iter(images))} " if len(images) == 1 else ""
