"""Figures of an experiment, one a downstream task: results along what is asked about.

Three things are told apart at every value: the mean over seeds (a dot, hollow where it is told to be lower
than the best), its 95 % interval over test images (a bar), and each seed's own result (small circles beside).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from markupsafe import Markup

from mimbench.report.axes import BOTTOM, RIGHT, TOP, WIDTH, Axes, text, ticks
from mimbench.report.findings import Arm, Task
from mimbench.report.text import cut

NAMES = 168  # of the figure's width, left of a dot plot
STEP = 30  # between its lines
ASIDE = 8  # of a seed's circle from its mean
LETTERS = 22  # of a name that fit there

Level = tuple[str, float]  # name and value of a floor or ceiling


def drawn(task: Task, best: Collection[Arm], levels: Sequence[Level], axis_label: str) -> Markup:
    """The figure of one task: a line where values are numbers, otherwise a dot plot.

    best: the arms that are not told from the best.
    """
    numbers = not any(math.isnan(arm.x) for arm in task.arms)
    return _line(task, best, levels, axis_label) if numbers else _dots(task, best, levels, axis_label)


def _line(task: Task, best: Collection[Arm], levels: Sequence[Level], axis_label: str) -> Markup:
    xs = [arm.x for arm in task.arms]
    logarithmic = min(xs) > 0 and max(xs) >= 8 * min(xs)
    pad = 0.08 * (max(xs) - min(xs)) or 1.0
    x = (min(xs) / 1.2, max(xs) * 1.2) if logarithmic else (min(xs) - pad, max(xs) + pad)
    axes = Axes(x, _range(task, levels), logarithmic=logarithmic, factor=_factor(task))
    parts = [axes.opened(_told(task, axis_label)), axes.grid(axis_label, {a.x: a.value for a in task.arms})]
    for arm in task.arms:
        axes.keep_clear(axes.at_x(arm.x), axes.at_y(task.cell(arm).value))
    for name, value in levels:
        parts.append(axes.level(value))
        first, last = (abs(task.cell(arm).value - value) for arm in (task.arms[0], task.arms[-1]))
        parts.append(
            axes.name(name, axes.at_x(x[last > first]), axes.at_y(value) - 8, leftwards=last > first)
        )
    corners = (f"{axes.at_x(a.x):.1f} {axes.at_y(task.cell(a).value):.1f}" for a in task.arms)
    parts.append(Markup('<path class="line" d="M{}"/>').format("L".join(corners)))
    for arm in task.arms:
        cell = task.cell(arm)
        place = axes.at_x(arm.x)
        parts.append(axes.error(arm.x, cell.low, cell.high))
        parts += [
            _seed(place + ASIDE, axes.at_y(value), task, arm, seed) for seed, (value, _) in cell.seeds.items()
        ]
        parts.append(_mean(place, axes.at_y(cell.value), task, arm, best))
    return Markup("").join([*parts, Markup("</svg>")])


def _dots(task: Task, best: Collection[Arm], levels: Sequence[Level], axis_label: str) -> Markup:
    height = TOP + STEP * len(task.arms) + BOTTOM
    low, high = _range(task, levels)

    def at(value: float) -> float:
        return NAMES + (WIDTH - RIGHT - NAMES) * (value - low) / (high - low)

    bottom = height - BOTTOM
    parts = [Axes((0, 1), (0, 1), height=height).opened(_told(task, axis_label))]
    for tick in ticks(low, high, about=4):
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(at(tick), TOP, bottom))
        parts.append(text(at(tick), bottom + 16, f"{_factor(task) * tick:.6g}", "axis middle"))
    parts.append(text((NAMES + WIDTH - RIGHT) / 2, height - 6, _measured(task), "axis middle"))
    for name, value in levels:
        parts.append(Markup('<path class="level" d="M{:.1f} {}V{}"/>').format(at(value), TOP, bottom))
        parts.append(text(at(value), TOP - 2, name, "axis middle"))
    for line, arm in enumerate(task.arms):
        cell, y = task.cell(arm), TOP + STEP * (line + 0.5)
        parts.append(text(NAMES - 8, y + 4, cut(arm.value, LETTERS), "name end"))
        if not math.isnan(cell.low):
            span = (at(cell.low), y, at(cell.high))
            parts.append(Markup('<path class="error" d="M{:.1f} {:.1f}H{:.1f}"/>').format(*span))
        parts += [_seed(at(v), y + ASIDE, task, arm, seed) for seed, (v, _) in cell.seeds.items()]
        parts.append(_mean(at(cell.value), y, task, arm, best))
    return Markup("").join([*parts, Markup("</svg>")])


def _range(task: Task, levels: Sequence[Level]) -> tuple[float, float]:
    """Of the results, their intervals and seeds, and the levels; shares stay between 0 and 1."""
    cells = [task.cell(arm) for arm in task.arms]
    values = [value for cell in cells for value in (cell.value, cell.low, cell.high)]
    values += [value for cell in cells for value, _ in cell.seeds.values()] + [value for _, value in levels]
    values = [value for value in values if not math.isnan(value)]
    pad = 0.06 * (max(values) - min(values) or 0.1)
    low, high = min(values) - pad, max(values) + pad
    return (max(low, 0), min(high, 1)) if task.column.unit == "share" else (low, high)


def _mean(x: float, y: float, task: Task, arm: Arm, best: Collection[Arm]) -> Markup:
    cell, shown = task.cell(arm), task.column.shown
    title = f"{arm.row.variant}: {_numbers(task, arm)}"
    if not math.isnan(cell.spread):
        title += f", spread over seeds {shown(cell.spread, 2)}"
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
        "method" if arm in best else "lower", x, y, title
    )


def _seed(x: float, y: float, task: Task, arm: Arm, seed: int) -> Markup:
    title = f"{arm.row.variant}, seed {seed}: {task.column.shown(task.cell(arm).seeds[seed][0])}"
    return Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}</title></circle>').format(
        x, y, title
    )


def _factor(task: Task) -> float:
    return 100 if task.column.unit == "share" else 1


def _measured(task: Task) -> str:
    return f"{task.column.metric}{' in %' if task.column.unit == 'share' else ''}"


def _told(task: Task, axis_label: str) -> str:
    """The figure in words, with its numbers, for those who do not see it."""
    numbers = "; ".join(f"{arm.value}: {_numbers(task, arm)}" for arm in task.arms)
    return f"{task.column.title}, {_measured(task)}, by {axis_label}. {numbers}"


def _numbers(task: Task, arm: Arm) -> str:
    cell, shown = task.cell(arm), task.column.shown
    interval = "" if math.isnan(cell.low) else f" [{shown(cell.low)}, {shown(cell.high)}]"
    return shown(cell.value) + interval
