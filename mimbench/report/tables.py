"""What a table is made of; ``report.build`` makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from mimbench.outcomes import Outcomes
from mimbench.report import text
from mimbench.report.cards import MethodCard
from mimbench.report.costs import COSTS, NAN, SPENT, Cost
from mimbench.report.level import Level
from mimbench.spec import Setting, labelled
from mimbench.weights.release import Release


@dataclass(frozen=True)
class Column:
    """One protocol at one version with one set of fields on one data set: its numbers are comparable."""

    protocol: str
    version: int
    fields: str  # canonical JSON
    preset: str = ""  # the official recipe that the fields are
    tested_on: str = ""  # fingerprint of the data, "" for that of the setting
    data: str = field(default="", compare=False)  # its name; a moved folder changes it
    # What a done record knows and a failed one does not, so no part of what the column is.
    metric: str = field(default="result", compare=False)
    summary: str = field(default="", compare=False)  # of the protocol, one sentence
    unit: str = field(default="share", compare=False)  # "share" of the test data, or "number"
    ranked: bool = field(default=True, compare=False)  # whether more is better
    newest: int = field(default=0, compare=False)  # version of this protocol that there are results of

    @property
    def older(self) -> bool:
        return self.version < self.newest

    @property
    def name(self) -> str:
        """As it is asked for: "linprobe:mae"."""
        return f"{self.protocol}:{self.preset}" if self.preset else self.protocol

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before comparing it with the columns beside it."""
        tested = (f"on {self.data}",) if self.tested_on else ()
        chooses = ("chooses on test",) if self.chosen_on == "test" else ()
        return (*tested, *chooses, *((f"older version, now {self.newest}",) if self.older else ()))

    @property
    def title(self) -> str:
        """Tells it from all other columns of its table."""
        return " ".join([self.label, *self.remarks[: bool(self.tested_on)]])

    @cached_property
    def chosen_on(self) -> str:
        """The images by which it chooses among candidates: "validation", or "test" as some recipes do."""
        return json.loads(self.fields).get("choose_on", "validation")

    @property
    def heading(self) -> str:
        return f"{self.metric} %" if self.unit == "share" else self.metric

    def shown(self, value: float, digits: int = 1) -> str:
        """A value as people read it below ``heading``."""
        return text.percent(value, digits) if self.unit == "share" else text.number(value)


@dataclass(frozen=True)
class Cell:
    """One number of a table, or the reason why there is none (then the numbers are NaN)."""

    state: str  # "value", "hole" or "failed"
    reason: str = ""
    value: float = NAN  # mean over seeds
    low: float = NAN  # interval over test images, see stats.interval
    high: float = NAN
    spread: float = NAN  # sample standard deviation over seeds
    images: int = 0  # of the test split; 0 where no outcomes of single images are known
    seeds: dict[int, tuple[float, str]] = field(default_factory=dict)  # seed -> (value, record id)
    outcomes: tuple[Outcomes, ...] = field(default=(), repr=False, compare=False)  # one a seed
    rank: str = ""  # "1", "2=", ...; empty for floor, ceiling, older versions and holes
    p_above: float = NAN  # paired test against the method ranked just above, Holm's among all such
    p_above_raw: float = NAN  # the same test on its own
    images_needed: float = NAN  # to tell it from the one above where the two tie, see ``mimbench.power``
    seeds_needed: float = NAN  # the same, of each of the two; unknown with one seed
    candidates: int = 0  # that were chosen from, in each seed
    chosen: dict[int, str] = field(default_factory=dict)  # seed -> what it chose, in words
    edges: tuple[str, ...] = ()  # choices at the edge of what was tried: more might have been better
    flags: tuple[str, ...] = ()  # what to know about this number, in sentences
    metrics: dict[str, float] = field(default_factory=dict)  # all that was measured, means over seeds


@dataclass(frozen=True)
class Row:
    """A method variant at one version."""

    setting: Setting  # that it was trained under: its table's, but where that varies
    variant: str
    method: str
    version: str  # "1"; with a tokenizer or teacher trained for it also theirs, "1.2"
    older: bool  # another row holds a newer version of this variant
    role: str
    external: str
    parity: str  # how much its loss is known to be the published one, see spec.Parity
    sources: str  # of it: "teacher ibot"; "" where it learns from images, or labels, alone
    settings: str  # canonical JSON
    cells: tuple[Cell, ...]  # one a column
    cost: dict[str, float]  # costs.Cost.key -> mean over seeds
    device: str  # that it was trained on
    recipe: dict[str, Any]  # of optimisation; empty where nothing was trained
    trained: dict[int, str]  # seed -> id of the pre-training's record
    curves: dict[int, list[dict[str, float]]]  # seed -> learning curve
    finished: str  # when the newest of its records was, ISO 8601
    flags: tuple[str, ...] = ()  # what to know about its pre-training, in sentences
    card: MethodCard | None = None  # None where its records keep none
    release: Release | None = None  # of weights that were trained elsewhere
    epochs: float = NAN  # of its own pre-training, mean over seeds
    group: str = ""  # heading that it stands under; "" where rows stand in none

    @property
    def seeds(self) -> list[int]:
        """All that there is a record of."""
        return sorted({*self.trained, *(seed for cell in self.cells for seed in cell.seeds)})

    @property
    def single(self) -> str:
        """Id of the record behind its cost where it has one seed, otherwise ""."""
        if len(self.seeds) != 1:
            return ""
        return next(iter([*self.trained.values(), *(r for c in self.cells for _, r in c.seeds.values())]))

    @property
    def records(self) -> int:
        return len(self.trained) + sum(len(cell.seeds) for cell in self.cells)


@dataclass(frozen=True)
class Body:
    """Rows of one group that stand below each other. start: place of the first in the table."""

    heading: str  # "" where the group's heading stands above already, or there are no groups
    older: bool  # all of them are results of a version that is no longer the newest
    start: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Rows that may be compared, within their groups where there are any."""

    setting: Setting  # of all rows; where they vary, that of one of them
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # by group; best first by the first column that ranks; older versions last
    seeds: tuple[int, ...]  # every number is a mean over all of them
    differs: tuple[tuple[str, str], ...]  # (what, its value here), wherever the tables part
    failures: tuple[tuple[str, str, str], ...]  # (job's name, error, record id)
    level: Level | None = None  # cost at which rows are compared; None: all had one budget, or a group each
    unlevelled: bool = False  # a level was asked for, and what its rows cost is not known here
    varies: tuple[str, ...] = ()  # fields of the setting in which rows may differ
    files: Mapping[str, str] = field(default_factory=dict, repr=False)  # of all its records, by their ids

    @property
    def label(self) -> str:
        return labelled(self.held, self.setting.released)

    @cached_property
    def held(self) -> dict[str, str]:
        """The setting in words, by field; where rows differ in one, all that there are."""
        of_rows = [row.setting.words() for row in self.rows]
        words = self.setting.words()
        for name in self.varies:
            words[name] = ", ".join(sorted({own[name] for own in of_rows})) or words[name]
        if self.level:
            words["budget"] = self.level.title
        return words

    @property
    def bodies(self) -> list[Body]:
        """The rows as they stand below each other."""
        found: list[Body] = []
        outdated = bool(self.columns) and all(column.older for column in self.columns)
        above = ""
        for (group, older), rows in groupby(self.rows, key=lambda row: (row.group, row.older)):
            start = sum(len(body.rows) for body in found)
            found.append(Body(group if group != above else "", older or outdated, start, tuple(rows)))
            above = group
        return found

    @property
    def costs(self) -> tuple[Cost, ...]:
        return (SPENT, *COSTS) if self.level else COSTS

    @cached_property
    def _best(self) -> dict[tuple[str, int], float]:
        """The highest of the numbers that rank, by group and place of the column."""
        best: dict[tuple[str, int], float] = {}
        for row in self.rows:
            for place, cell in enumerate(row.cells):
                if cell.rank:
                    best[row.group, place] = max(cell.value, best.get((row.group, place), cell.value))
        return best

    def is_best(self, row: Row, place: int) -> bool:
        """Whether no method of its group does better under a column."""
        cell = row.cells[place]
        return bool(cell.rank) and cell.value == self._best[row.group, place]

    @cached_property
    def _budgets(self) -> set[str]:
        """Of the runs that are compared at an equal cost; each group's heading names its own otherwise."""
        trained = (row.setting.budget for row in self.rows if row.cost["pflops"] > 0)
        return set(map(str, trained)) if self.level else set()

    def marks(self, row: Row) -> tuple[str, ...]:
        """What stands beside a row's name wherever it is shown."""
        found = [row.role] if row.role != "method" else []
        if row.external == "labels" or (row.external != "none" and not row.sources):
            found.append(row.external)
        found += [row.sources] if row.sources else []
        found += [row.release.trained_on] if row.release and row.release.trained_on else []
        found += ["not the published formulas"] if row.parity == "own formulas" else []
        found += [f"older version {row.version}"] if row.older else []
        if len(self._budgets) > 1 and row.cost["pflops"] > 0:
            found.append(str(row.setting.budget))
        return tuple(found)

    def row_flags(self, row: Row) -> tuple[str, ...]:
        """What to know about all numbers of a row: flags of its pre-training, and of what only describes."""
        described = (
            flag
            for column, cell in zip(self.columns, row.cells, strict=True)
            if not column.ranked
            for flag in cell.flags
        )
        return tuple(dict.fromkeys([*row.flags, *described]))

    def cell_flags(self, row: Row, place: int) -> tuple[str, ...]:
        """What to know about one number of a row, and about no other."""
        return row.cells[place].flags if self.columns[place].ranked else ()

    @property
    def flags(self) -> list[tuple[str, str]]:
        """(whom it concerns, sentence) of all flags, row by row."""
        found = []
        for row in self.rows:
            found += [(row.variant, flag) for flag in self.row_flags(row)]
            for place, column in enumerate(self.columns):
                found += [(f"{row.variant}, {column.title}", flag) for flag in self.cell_flags(row, place)]
        return found
