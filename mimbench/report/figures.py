"""Figures as inline SVG: no script, no style attribute, every text escaped, colours from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from mimbench.report.axes import CHARACTER, LEFT, RIGHT, WIDTH, Axes, text
from mimbench.report.text import number, percent

LABELLED = 14  # with more points than this, names would cover each other
LEVELS = 3  # and with more levels than this


class Point(NamedTuple):
    name: str
    role: str
    x: float
    y: float
    low: float
    high: float


def interval_bar(low: float, value: float, high: float, bounds: tuple[float, float]) -> Markup:
    """A bar from ``low`` to ``high`` with a tick at ``value`` on the track ``bounds``, beside a number."""
    start, end = bounds
    scale = 64 / ((end - start) or 1)
    a, b, c = (f"{2 + (x - start) * scale:.1f}" for x in (low, high, value))
    width = max(float(b) - float(a), 1)
    return Markup(
        '<svg class="bar" viewBox="0 0 68 12" width="68" height="12" aria-hidden="true">'
        '<rect class="interval" x="{}" y="3" width="{:.1f}" height="6" rx="2"/>'
        '<path class="tick" d="M{} 0V12"/></svg>'
    ).format(a, width, c)


def scatter(
    points: Sequence[Point],
    lines: Sequence[tuple[str, float]],
    x_label: str,
    y_label: str,
    share: bool,
    front: Sequence[Point] = (),
) -> Markup:
    """Scores against cost on a logarithmic axis, with intervals; ``lines`` are levels without a cost.

    share: whether scores lie in [0, 1], which is drawn in percent. front: the points that none beats,
    cheapest first; a stepped line goes through them. Of many points only these and references are named.
    Returns an empty string where fewer than two points have a cost.
    """
    points = [p for p in points if p.x > 0 and not math.isnan(p.y)]
    if len(points) < 2:
        return Markup("")
    xs = [p.x for p in points]
    crowded = len(points) > LABELLED
    # Room for names: on the right, and of a front, whose line leads to the right, on the left.
    x_low, x_high = min(xs) / (2 if crowded and front else 1.25), max(xs) * 1.6
    values = [v for p in points for v in (p.low, p.high) if not math.isnan(v)] + [p.y for p in points]
    values += [level for _, level in lines]
    pad = 0.06 * (max(values) - min(values) or 0.1)
    y_low, y_high = min(values) - pad, max(values) + pad
    if share:
        y_low, y_high = max(y_low, 0), min(y_high, 1)

    axes = Axes((x_low, x_high), (y_low, y_high), logarithmic=True, factor=100 if share else 1)
    parts = [
        axes.opened(f"{y_label} against {x_label}, {len(points)} points; the numbers are in the table"),
        axes.grid(x_label),
    ]
    parts += [axes.level(level) for _, level in _ends(lines)]
    parts.append(_steps(axes, front))
    named = {*_some(front), *_some([point for point in points if point.role != "method"])}
    for point in points if not crowded else named:
        axes.keep_clear(axes.at_x(point.x), axes.at_y(point.y))
    for i, (name, level) in enumerate(_ends(lines)):
        side = LEFT - 4 if i % 2 == 0 else WIDTH - RIGHT - 8 - CHARACTER * len(name)  # apart from each other
        parts.append(axes.name(name, side, axes.at_y(level) - 8))
    for point in sorted(points, key=lambda p: p.y):
        parts.append(axes.error(point.x, point.low, point.high))
        title = f"{point.name}: {_score(point.y, share)}, {x_label} {number(point.x)}"
        parts.append(axes.dot(point.x, point.y, point.role, title))
        if not crowded or point in named:
            place = (axes.at_x(point.x), axes.at_y(point.y))
            parts.append(axes.name(point.name, *place, leftwards=point in front))
    return Markup("").join([*parts, Markup("</svg>")])


def _ends(lines: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The levels to draw: of many, which would cover each other, the lowest and the highest."""
    ordered = sorted(lines, key=lambda line: line[1])
    return ordered if len(ordered) <= LEVELS else [ordered[0], ordered[-1]]


def _some(points: Sequence[Point]) -> list[Point]:
    """As many as can be named, evenly spread, from the first to the last."""
    if len(points) <= LABELLED:
        return list(points)
    return [points[round(i * (len(points) - 1) / (LABELLED - 1))] for i in range(LABELLED)]


def _steps(axes: Axes, front: Sequence[Point]) -> Markup:
    """From point to point: the best score that each cost buys, up to the right edge."""
    if not front:
        return Markup("")
    first, *others = front
    path = "".join(f"H{axes.at_x(point.x):.1f}V{axes.at_y(point.y):.1f}" for point in others)
    start = (axes.at_x(first.x), axes.at_y(first.y))
    return Markup('<path class="front" d="M{:.1f} {:.1f}{}H{}"/>').format(*start, path, axes.width - RIGHT)


def _score(value: float, share: bool) -> str:
    return percent(value) if share else number(value)


def curve(runs: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """Losses over the course of pre-training, one line a seed: (share of the run, loss) pairs."""
    losses = [loss for run in runs for _, loss in run]
    if not losses:
        return Markup("")
    low, high = min(losses), max(losses)
    scale = 72 / (high - low or 1)
    parts = [
        Markup('<svg class="curve" viewBox="0 0 180 100" role="img" aria-label="{}">').format(
            f"loss from {number(runs[0][0][1])} to {number(runs[0][-1][1])}"
        )
    ]
    parts.append(Markup('<path class="grid" d="M36 10V82H176"/>'))
    parts.append(text(33, 14, number(high), "axis end"))
    parts.append(text(33, 86, number(low), "axis end"))
    parts.append(text(36, 96, "start", "axis"))
    parts.append(text(176, 96, "end", "axis end"))
    for run in runs:
        step = max(1, len(run) // 120)
        kept = [*run[:-1:step], run[-1]]
        path = "L".join(f"{36 + 140 * share:.1f} {82 - (loss - low) * scale:.1f}" for share, loss in kept)
        parts.append(Markup('<path class="line" d="M{}"/>').format(path))
    return Markup("").join([*parts, Markup("</svg>")])
