"""Published figures below the measured ones: beside them, never among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mimbench import published
from mimbench.published.agreement import Orders, orders
from mimbench.published.beside import Beside, beside
from mimbench.report import text
from mimbench.report.axes import Axes
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Column, Table

OTHERS = 12  # figures in further settings that a row lists; mimbench published prints all

NAMED = 20  # dots of the plot with names beside them; of more, pointing at a dot tells its name


@dataclass(frozen=True)
class _Part:
    """What a column has: of one metric, its rows, and the reasons that all of them share."""

    column: Column
    metric: str
    entries: list[Beside]
    shared: list[str]
    orders: Orders | None
    drawing: Markup

    def own(self, entry: Beside) -> list[str]:
        """The reasons that are not those of all."""
        return [reason for reason in entry.reasons if reason not in self.shared]


def draw(table: Table, surroundings: Surroundings) -> Markup:
    """Empty where nobody published a figure for a method, protocol and metric of the table."""
    parts = [part for place in range(len(table.columns)) for part in _parts(table, place)]
    if not parts:
        return Markup("")
    return surroundings.render(
        "published.html",
        parts=parts,
        label=table.label,
        listed=OTHERS,
        percent=text.percent,
        points=_points,
        signed=_signed,
        probability=text.probability,
        isnan=math.isnan,
        confidence=published.CONFIDENCE,
    )


def _parts(table: Table, place: int) -> list[_Part]:
    column = table.columns[place]
    by_metric: dict[str, list[Beside]] = {}
    for entry in beside(table, place, published.load()):
        by_metric.setdefault(entry.metric, []).append(entry)
    parts = []
    for metric, entries in by_metric.items():
        shared = [r for r in entries[0].reasons if all(r in other.reasons for other in entries)]
        compared = orders(entries) if column.ranked else None
        drawing = _drawing(compared, f"{column.title} {metric} %") if compared else Markup("")
        parts.append(_Part(column, metric, entries, shared if len(entries) > 1 else [], compared, drawing))
    return parts


def _points(difference: float) -> str:
    """A difference in points with its sign: "+1.2", "−40.3"."""
    return f"{difference:+.1f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _drawing(compared: Orders, y_label: str) -> Markup:
    """Measured against published numbers, one point a method."""
    xs = [figure.value for _, figure in compared.pairs]
    ys = [entry.value for entry, _ in compared.pairs]
    ends = [end for entry, _ in compared.pairs for end in (entry.low, entry.high) if not math.isnan(end)]
    axes = Axes(_room(xs), _room([*ys, *ends]), factor=100)
    x_label = f"published {compared.pairs[0][1].metric} %, {compared.backbone} on {compared.evaluated_on}"
    parts = [axes.opened(f"{y_label} against {x_label}, {len(xs)} methods"), axes.grid(x_label)]
    for entry, figure in compared.pairs:
        axes.keep_clear(axes.at_x(figure.value), axes.at_y(entry.value))
    for entry, figure in compared.pairs:
        parts.append(axes.error(figure.value, entry.low, entry.high))
        title = f"{entry.row.variant}: {text.percent(entry.value)} measured, {figure.value:g} published"
        parts.append(axes.dot(figure.value, entry.value, "method", title))
        if len(xs) <= NAMED:
            parts.append(axes.name(entry.row.variant, axes.at_x(figure.value), axes.at_y(entry.value)))
    return Markup("").join([*parts, Markup("</svg>")])


def _room(values: Sequence[float]) -> tuple[float, float]:
    pad = 0.08 * (max(values) - min(values) or max(abs(values[0]), 1e-3))
    return min(values) - pad, max(values) + pad
