"""How a leaderboard is laid out: which columns, in which order, at which cost, in which groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mimbench import settings
from mimbench.errors import UserError, unknown
from mimbench.report.level import Level
from mimbench.report.tables import Row
from mimbench.spec import AS_RELEASED, Budget

# What rows may stand in groups by. Settings that differ in nothing but such fields share one table then.
OF_SETTING = ("backbone", "budget", "image_size", "recipe", "batch_size", "precision")
OF_ROW = ("external", "role")
HEADINGS = {
    "none": "nothing but images",
    "tokenizer": "with a tokenizer",
    "teacher": "with a teacher",
    "labels": "with labels",
    "method": "methods",
    "floor": "floor: no pre-training",
    "ceiling": "ceiling: trained with the labels",
}
FORMS = {"image_size": "{} px", "recipe": "{} recipe", "batch_size": "batch {}"}


@dataclass(frozen=True)
class Layout:
    """What to draw of the records of some folders, and how.

    by: columns that come first, in this order; the first one sorts the rows. They must exist and rank.
    first: columns that come next where they exist. only: columns to keep, all by default.
    A column is named as it is asked for ("linprobe", "linprobe:mae"), on all data sets or on one ("knn on
    imagefolder:birds"), or as its head says it ("linprobe@1").
    seeds: to keep, all by default. level: the cost at which rows of different budgets are compared.
    group: fields by which rows stand in groups, the outermost first.
    """

    by: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    level: Level | None = None
    group: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.group:
            if name not in (*OF_SETTING, *OF_ROW):
                raise unknown("field to group by", name, (*OF_SETTING, *OF_ROW))
        if self.level and "budget" in self.group:
            raise UserError(
                "rows at equal cost have one budget each, so they cannot stand in groups by budget; "
                "leave out --at or take budget out of --group"
            )

    @property
    def free(self) -> tuple[str, ...]:
        """Fields of the setting in which rows of one table may differ."""
        at_level = ("budget",) if self.level else ()
        return (*at_level, *(name for name in self.group if name in OF_SETTING))

    def heading(self, row: Row) -> str:
        """Of the group that a row stands in; "" without groups."""
        return " · ".join(dict.fromkeys(_heading(name, row) for name in self.group))

    def place(self, row: Row) -> tuple[Any, ...]:
        """Sorts groups: by name or size, and by what is given to pre-training from nothing to labels."""
        return tuple(_order(name, row) for name in self.group)


def make_layout(
    by: str | Sequence[str] = (),
    at: str = "",
    group: str | Sequence[str] = (),
    protocol: str | Sequence[str] = (),
    seeds: str | int | Sequence[int] = (),
) -> Layout:
    """A Layout out of options as they are typed; raises UserError in one sentence for a wrong one."""
    return Layout(
        by=_names(by),
        only=_names(protocol),
        seeds=_numbers(seeds) or None,
        level=Level.parse(at) if at else None,
        group=tuple(name.replace("-", "_") for name in _names(group)),
    )


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    items = [given] if isinstance(given, str) else given
    return tuple(dict.fromkeys(part for item in items for part in settings.split(item)))


def _numbers(given: str | int | Sequence[int]) -> tuple[int, ...]:
    items = settings.split(given) if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        return tuple(dict.fromkeys(int(item) for item in items))
    except ValueError as error:
        raise UserError(f"seeds {given!r} are no whole numbers; write them as in 0,1,2") from error


def _heading(name: str, row: Row) -> str:
    if name in OF_ROW:
        return HEADINGS[getattr(row, name)]
    words = row.setting.words()[name]
    return words if words == AS_RELEASED else FORMS.get(name, "{}").format(words)


def _order(name: str, row: Row) -> Any:
    if name in OF_ROW:
        return list(HEADINGS).index(getattr(row, name))
    value = getattr(row.setting, name)
    return (value.unit, value.amount) if isinstance(value, Budget) else value
