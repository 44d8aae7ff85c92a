"""Figures as inline SVG: no script, no style attribute, every text escaped, colours from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from mimbench.report.text import number, percent

WIDTH, HEIGHT = 420, 280  # of a scatter plot: small enough to be read at the width of a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 42
CHARACTER = 7.2  # width of one at the size of names, on average
LABELLED = 14  # with more points than this, names would cover each other


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


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about that many, steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low or 1) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from ``low`` to ``high``; only the powers over more than two decades."""
    steps = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]


def scatter(
    points: Sequence[Point], lines: Sequence[tuple[str, float]], x_label: str, y_label: str, share: bool
) -> Markup:
    """Scores against cost on a logarithmic axis, with intervals; ``lines`` are levels without a cost.

    share: whether scores lie in [0, 1], which is drawn in percent.
    Returns an empty string where fewer than two points have a cost.
    """
    points = [p for p in points if p.x > 0 and not math.isnan(p.y)]
    if len(points) < 2:
        return Markup("")
    xs = [p.x for p in points]
    x_low, x_high = min(xs) / 1.25, max(xs) * 1.6  # room for names on the right
    values = [v for p in points for v in (p.low, p.high) if not math.isnan(v)] + [p.y for p in points]
    values += [level for _, level in lines]
    pad = 0.06 * (max(values) - min(values) or 0.1)
    y_low, y_high = min(values) - pad, max(values) + pad
    if share:
        y_low, y_high = max(y_low, 0), min(y_high, 1)
    factor = 100 if share else 1

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / x_low) / math.log(x_high / x_low)

    def place_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - y) / (y_high - y_low)

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{y_label} against {x_label}, {len(points)} points; the numbers are in the table"
        )
    ]
    for tick in ticks(y_low, y_high):
        y = place_y(tick)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(_text(LEFT - 6, y + 4, f"{factor * tick:.6g}", "axis end"))
    for tick in log_ticks(x_low, x_high):
        x = place_x(tick)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{tick:g}", "axis middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "axis middle"))
    taken: list[tuple[float, float, float]] = []
    for i, (name, level) in enumerate(lines):
        y = place_y(level)
        parts.append(Markup('<path class="level" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        side = LEFT - 4 if i % 2 == 0 else WIDTH - RIGHT - 8 - CHARACTER * len(name)  # apart from each other
        parts.append(_name(name, side, y - 8, taken))
    for point in sorted(points, key=lambda p: p.y):
        x, y = place_x(point.x), place_y(point.y)
        if not math.isnan(point.low):
            span = (x, place_y(point.high), place_y(point.low))
            parts.append(Markup('<path class="error" d="M{:.1f} {:.1f}V{:.1f}"/>').format(*span))
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                point.role, x, y, f"{point.name}: {_score(point.y, share)}, {x_label} {number(point.x)}"
            )
        )
        if len(points) <= LABELLED:
            parts.append(_name(point.name, x, y, taken))
    return Markup("").join([*parts, Markup("</svg>")])


def _score(value: float, share: bool) -> str:
    return percent(value) if share else number(value)


def _name(name: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> Markup:
    """A point's name beside it, moved up past the names below; left of the point near the right edge."""
    name = name if len(name) <= 24 else name[:23] + "…"
    width = CHARACTER * len(name)
    start = x + 8 if x + 8 + width <= WIDTH else x - 8 - width
    y += 4
    while any(a < start + width and start < b and abs(y - other) < 12 for a, b, other in taken):
        y -= 3
    taken.append((start, start + width, y))
    return _text(start, y, name, "name")


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
    parts.append(_text(33, 14, number(high), "axis end"))
    parts.append(_text(33, 86, number(low), "axis end"))
    parts.append(_text(36, 96, "start", "axis"))
    parts.append(_text(176, 96, "end", "axis end"))
    for run in runs:
        step = max(1, len(run) // 120)
        kept = [*run[:-1:step], run[-1]]
        path = "L".join(f"{36 + 140 * share:.1f} {82 - (loss - low) * scale:.1f}" for share, loss in kept)
        parts.append(Markup('<path class="line" d="M{}"/>').format(path))
    return Markup("").join([*parts, Markup("</svg>")])


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)
