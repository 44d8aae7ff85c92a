"""What an experiment found: its rows in place along what it asks about, and sentences on what can be told.

A value counts as told from the best of its task where a paired test on the same test images says so (Holm's
correction for all pairs of the task, as the best is picked by looking) and where the best is ahead in every
seed. The first speaks of other images, the second of other seeds; neither alone would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from mimbench import stats
from mimbench.report.tables import Cell, Column, Row, Table
from mimbench.request import About


@dataclass(frozen=True)
class Arm:
    """A row in its place. x: the value of a setting, NaN where values are words."""

    row: Row
    value: str
    x: float
    group: str


@dataclass(frozen=True)
class Task:
    """One downstream task and the arms of one group that have a number for it, in the order of the axis."""

    column: Column
    place: int  # of the column in its table
    group: str
    arms: tuple[Arm, ...]

    def cell(self, arm: Arm) -> Cell:
        return arm.row.cells[self.place]

    @property
    def best(self) -> Arm:
        return max(self.arms, key=lambda arm: self.cell(arm).value)

    @cached_property
    def among_best(self) -> tuple[Arm, ...]:
        """The arms that cannot be told from the best, the best included, in the order of the axis.

        All of them where outcomes of single images are not known.
        """
        cells = [self.cell(arm) for arm in self.arms]
        if not all(cell.outcomes for cell in cells):
            return self.arms
        pairs = list(combinations(range(len(cells)), 2))
        p = stats.holm([stats.difference_p(cells[i].outcomes, cells[j].outcomes) for i, j in pairs])
        best = self.arms.index(self.best)
        told = {
            i + j - best
            for (i, j), adjusted in zip(pairs, p, strict=True)
            if best in (i, j) and adjusted < stats.ALPHA and _ahead(cells[best], cells[i + j - best])
        }
        return tuple(arm for place, arm in enumerate(self.arms) if place not in told)


def answer(tables: Sequence[Table], about: About, jobs: set[str]) -> list[str]:
    """What the results of ``jobs`` tell about an experiment, in sentences; none where they tell nothing."""
    return [
        sentence for table in tables for sentence in sentences(tasks(table, arms(table, about, jobs), jobs))
    ]


def axis_label(about: About) -> str:
    """What the values along the axis are, in words."""
    return about.axis_label or about.axis.replace("_", " ") or "choice"


def arms(table: Table, about: About, jobs: set[str]) -> list[Arm]:
    """The rows of ``table`` that ``jobs`` gave and the experiment places, in the order of its axis."""
    named = {arm.row: arm for arm in about.arms}
    found = []
    for row in table.rows:
        if row.older or row.role != "method" or not jobs & _records(row):
            continue
        given = named.get(row.variant)
        if named and given is None:
            continue
        setting = json.loads(row.settings).get(about.axis)
        x = math.nan if isinstance(setting, (bool, str)) or setting is None else _number(setting)
        value = (given.value if given else "") or ("" if setting is None else _shown(setting))
        if value:
            found.append(Arm(row, value, x, given.group if given else ""))
    order = {name: place for place, name in enumerate(named)}
    if any(math.isnan(arm.x) for arm in found):
        found.sort(key=lambda arm: (order.get(arm.row.variant, len(order)), arm.value, arm.row.variant))
    else:
        found.sort(key=lambda arm: (arm.x, arm.row.variant))
    return found


def tasks(table: Table, placed: Sequence[Arm], jobs: set[str]) -> list[Task]:
    """For each column that ranks, and each group, the arms with a number from ``jobs``; two arms at least."""
    found = []
    for place, column in enumerate(table.columns):
        for group in dict.fromkeys(arm.group for arm in placed):
            own = tuple(
                arm
                for arm in placed
                if arm.group == group
                and arm.row.cells[place].state == "value"
                and jobs & {record for _, record in arm.row.cells[place].seeds.values()}
            )
            if column.ranked and len(own) > 1:
                found.append(Task(column, place, group, own))
    return found


def floors(table: Table, task: Task, about: About, jobs: set[str]) -> list[tuple[str, float]]:
    """(name, value) of the floor and ceiling rows that ``jobs`` gave, for one task.

    Those that the experiment names belong to their group, under the name they have there; others to all.
    """
    named = {arm.row: arm for arm in about.arms}
    found = []
    for row in table.rows:
        given, cell = named.get(row.variant), row.cells[task.place]
        if row.role not in ("floor", "ceiling") or row.older or not jobs & _records(row):
            continue
        if cell.state == "value" and (given is None or given.group == task.group):
            found.append((given.value if given and given.value else row.variant, cell.value))
    return found


def _ahead(best: Cell, other: Cell) -> bool:
    """Whether it is ahead in every seed that both have; without one in common, in all against all."""
    shared = best.seeds.keys() & other.seeds.keys()
    if shared:
        return all(best.seeds[seed][0] > other.seeds[seed][0] for seed in shared)
    return min(v for v, _ in best.seeds.values()) > max(v for v, _ in other.seeds.values())


def sentences(found: Sequence[Task]) -> list[str]:
    """What can be told, a sentence a task and one on whether tasks agree, group by group."""
    said = []
    for group in dict.fromkeys(task.group for task in found):
        own = [(task, task.among_best) for task in found if task.group == group]
        lead = f"{group}: " if group else ""
        said += [lead + _of_task(task, best) for task, best in own]
        if agreement := _of_all(own):
            said.append(lead + agreement)
    return said


def _of_task(task: Task, among: Sequence[Arm]) -> str:
    column, best = task.column, task.best
    number = f"{column.shown(task.cell(best).value)}{' %' if column.unit == 'share' else ''}"
    start = f"{column.title} ({column.metric}) is highest at {best.value}, {number}"
    if len(among) == len(task.arms):
        return f"{start}, but nothing can be told: any other value may be as good."
    lower = [arm for arm in task.arms if arm not in among]
    ties = [arm for arm in among if arm is not best]
    said = (
        f"Lower beyond chance: {_listed(lower)}. As good for all one can tell: {_listed(ties)}."
        if ties
        else ""
    )
    return f"{start}. {said or 'All others are lower beyond chance.'}{_of_ends(task, among)}"


def _of_ends(task: Task, among: Sequence[Arm]) -> str:
    """Where along a numeric axis the best lie."""
    ends = (task.arms[0], task.arms[-1])
    if any(math.isnan(arm.x) for arm in task.arms) or len(task.arms) < 3:
        return ""
    inside = [end in among for end in ends]
    if not any(inside):
        return " Both ends are lower: the best lies between them."
    if all(inside):
        return " Both ends are among the best: no direction can be told."
    near, far = (ends[0], ends[1]) if inside[0] else (ends[1], ends[0])
    if near is task.best:
        return f" It lies at the end, {near.value}: more might lie beyond."
    return f" Towards {far.value} it falls; towards {near.value} no fall can be told."


def _of_all(own: Sequence[tuple[Task, Sequence[Arm]]]) -> str:
    """Whether the best differs between tasks; empty for a single one."""
    if len(own) < 2:
        return ""
    everything = {arm.value for task, _ in own for arm in task.arms}
    kept = [{arm.value for arm in among} for _, among in own]
    if all(len(among) == len(task.arms) for task, among in own):
        return "Nothing can be told about the best value in any task."
    for (a, in_a), (b, in_b) in combinations([(t, k) for (t, _), k in zip(own, kept, strict=True)], 2):
        if {arm.value for arm in a.arms} == {arm.value for arm in b.arms} and not in_a & in_b:
            return (
                f"Tasks differ in their best value: {a.column.title} wants "
                f"{_words(a, in_a)}, {b.column.title} {_words(b, in_b)}."
            )
    shared = set.intersection(*kept)
    if not shared:
        return "No value is among the best of every task, though no two tasks contradict each other."
    if shared == everything:
        return "Nothing can be told about the best value in any task."
    order = [arm.value for arm in own[0][0].arms if arm.value in shared]
    return (
        f"That tasks differ in their best value cannot be told: {_and(order)} "
        f"{'is' if len(order) == 1 else 'are'} among the best of each."
    )


def _words(task: Task, values: set[str]) -> str:
    return " or ".join(arm.value for arm in task.arms if arm.value in values)


def _listed(found: Sequence[Arm]) -> str:
    return _and([arm.value for arm in found])


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _records(row: Row) -> set[str]:
    """Ids of all records behind a row."""
    return {*row.trained.values(), *(record for cell in row.cells for _, record in cell.seeds.values())}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
