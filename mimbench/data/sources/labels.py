"""Labels that come as numbers: checked against the class names, or the classes named by number."""

from __future__ import annotations

from mimbench.data.sources.base import Listing, Part
from mimbench.errors import UserError


def labelled_listing(name: str, parts: dict[str, Part], classes: tuple[str, ...] | None) -> Listing:
    """A listing whose parts carry their labels, if any.

    A test part whose labels are all -1, as public sets of competitions have it, is left out and noted.
    Raises UserError where a label is out of range, or where some parts have labels and some do not.
    """
    notes: tuple[str, ...] = ()
    test = parts.get("test")
    if test is not None and test.labels is not None and (test.labels == -1).all() and len(parts) > 1:
        parts = {part: p for part, p in parts.items() if part != "test"}
        notes = ("the test part has hidden labels (all -1) and was left out",)
    return Listing(name=name, parts=parts, classes=_named(name, parts, classes), notes=notes)


def _named(name: str, parts: dict[str, Part], classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    labels = [p.labels for p in parts.values() if p.labels is not None]
    if not labels:
        return None
    if len(labels) < len(parts):
        without = ", ".join(part for part, p in parts.items() if p.labels is None)
        raise UserError(f"{name} has labels, but its {without} part has none; add them or take it away")
    lowest, highest = min(int(x.min()) for x in labels), max(int(x.max()) for x in labels)
    count = len(classes) if classes else highest + 1
    if lowest < 0 or highest >= count:
        wrong = lowest if lowest < 0 else highest
        raise UserError(
            f"{name} has the label {wrong}, but its {count} classes are numbered 0 to {count - 1}; "
            "correct the labels or the list of classes"
        )
    return classes or tuple(map(str, range(count)))
