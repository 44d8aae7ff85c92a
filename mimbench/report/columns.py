"""The columns of a table: which definitions of protocols there are, in which order they stand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mimbench.errors import UserError, unknown
from mimbench.report.entries import setting_of
from mimbench.report.layout import Layout
from mimbench.report.tables import Column

Slot = tuple[str, str, str]  # protocol, preset, data: of several definitions the newest is in the main table


def column_of(entry: Any) -> Column:
    """The column that an evaluation belongs to."""
    return Column(
        entry.protocol,
        entry.protocol_version,
        entry.fields,
        entry.preset,
        entry.tested_on,
        data=entry.tested_on_name,
        metric=entry.metric or "result",
        summary=entry.summary,
        unit=entry.unit,
        ranked=entry.ranked,
    )


def check_names(names: Sequence[str], entries: Sequence[Any], sorting: bool = False) -> None:
    """Raise UserError for the name of a column that no entry belongs to, or that cannot sort rows."""
    evaluations = [(column_of(e), setting_of(e.setting).data) for e in entries if e.kind == "evaluate"]
    for name in names:
        found = [column for column, own in evaluations if _is_called(name, column, own)]
        if not found:
            known = {c.name + (f" on {c.data}" if c.tested_on else "") for c, _ in evaluations}
            raise unknown("column of these results", name, known)
        if sorting and not any(column.ranked for column in found):
            raise UserError(
                f"{name} describes and does not rank, so that rows cannot be sorted by it; name another "
                "column with --by"
            )


def keeps(layout: Layout, entry: Any) -> bool:
    """Whether the layout shows an entry at all."""
    if layout.seeds is not None and entry.seed not in layout.seeds:
        return False
    if entry.kind != "evaluate" or not layout.only:
        return True
    own = setting_of(entry.setting).data
    return any(_is_called(name, column_of(entry), own) for name in layout.only)


def column_sets(entries: Sequence[Any], layout: Layout) -> list[tuple[Column, ...]]:
    """Columns of each table of one setting: every slot's newest definition, then the others alone."""
    evaluations = sorted((e for e in entries if e.kind == "evaluate"), key=lambda e: e.status)  # done first
    uses = Counter(column_of(e) for e in evaluations)
    definitions: dict[Slot, list[Column]] = defaultdict(list)
    for column in sorted(uses, key=lambda c: (-c.version, -uses[c], c.fields)):
        own = definitions[column.protocol, column.preset, column.tested_on]
        own.append(replace(column, newest=own[0].version if own else column.version))
    began = {slot: min(e.finished for e in evaluations if _slot(e) == slot) for slot in definitions}
    own_data = setting_of(entries[0].setting).data

    def place(slot: Slot) -> tuple:
        wanted = (*layout.by, *layout.first)
        column = definitions[slot][0]
        exactly = (at for at, name in enumerate(wanted) if _is_called(name, column, own_data))
        loosely = (at for at, name in enumerate(wanted) if name == column.protocol)  # its other recipes
        asked = next(exactly, None)
        at = next(loosely, len(wanted)) if asked is None else asked
        return at, asked is None, bool(column.tested_on), began[slot], slot

    slots = sorted(definitions, key=place)
    main = _told_apart([definitions[slot][0] for slot in slots])
    return [main] + [(column,) for slot in slots for column in definitions[slot][1:]]


def _slot(entry: Any) -> Slot:
    return entry.protocol, entry.preset, entry.tested_on


def _is_called(name: str, column: Column, own_data: str) -> bool:
    """Whether a column goes by a name. own_data: that of the setting, which its own columns do not say."""
    protocol, on, data = (part.strip() for part in name.partition(" on "))
    return protocol in (column.name, column.label) and (not on or data == (column.data or own_data))


def _told_apart(columns: list[Column]) -> tuple[Column, ...]:
    """The columns; where two data sets have the same name, with their content in it."""
    names = Counter(column.title for column in columns)
    return tuple(
        replace(column, data=f"{column.data} (content {column.tested_on[:8]})")
        if names[column.title] > 1 and column.tested_on
        else column
        for column in columns
    )
