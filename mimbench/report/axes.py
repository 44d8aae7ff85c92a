"""Axes of a figure: where a number lies on paper, round ticks, a grid, and names that do not overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from markupsafe import Markup

from mimbench.report.text import cut

WIDTH, HEIGHT = 420, 280  # of a figure: small enough to be read at the width of a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 42
CHARACTER = 7.2  # width of one at the size of names, on average
LONGEST = 24  # characters of a name


def text(x: float, y: float, words: str, kind: str) -> Markup:
    """Words at a place. kind: classes of the style sheet ("axis", "name", with "middle" or "end")."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


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


@dataclass
class Axes:
    """A frame from ``x`` = (low, high) to ``y`` = (low, high), in the units of the data.

    logarithmic: whether x is. factor: what y is multiplied by where it is written, 100 for percent.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool = False
    factor: float = 1
    width: float = WIDTH
    height: float = HEIGHT
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # names: start, end, baseline

    def at_x(self, x: float) -> float:
        low, high = self.x
        share = math.log(x / low) / math.log(high / low) if self.logarithmic else (x - low) / (high - low)
        return LEFT + (self.width - LEFT - RIGHT) * share

    def at_y(self, y: float) -> float:
        low, high = self.y
        return TOP + (self.height - TOP - BOTTOM) * (high - y) / (high - low)

    def opened(self, label: str) -> Markup:
        """The start of the drawing; ``label`` says in words what is seen."""
        return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            self.width, self.height, label
        )

    def grid(self, x_label: str, x_ticks: dict[float, str] | None = None) -> Markup:
        """Lines and numbers of both axes. x_ticks: words at places of x, where those are not its numbers."""
        parts = []
        for tick in ticks(*self.y):
            y = self.at_y(tick)
            parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, self.width - RIGHT))
            parts.append(text(LEFT - 6, y + 4, f"{self.factor * tick:.6g}", "axis end"))
        if x_ticks is None:
            x_ticks = {t: f"{t:g}" for t in (log_ticks if self.logarithmic else ticks)(*self.x)}
        for tick, words in x_ticks.items():
            x = self.at_x(tick)
            parts.append(
                Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, self.height - BOTTOM)
            )
            parts.append(text(x, self.height - BOTTOM + 16, words, "axis middle"))
        parts.append(text((LEFT + self.width - RIGHT) / 2, self.height - 6, x_label, "axis middle"))
        return Markup("").join(parts)

    def level(self, y: float) -> Markup:
        """A dashed line across at ``y``."""
        return Markup('<path class="level" d="M{} {:.1f}H{}"/>').format(
            LEFT, self.at_y(y), self.width - RIGHT
        )

    def error(self, x: float, low: float, high: float) -> Markup:
        """An interval at ``x``; nothing where it is unknown."""
        if math.isnan(low):
            return Markup("")
        span = (self.at_x(x), self.at_y(high), self.at_y(low))
        return Markup('<path class="error" d="M{:.1f} {:.1f}V{:.1f}"/>').format(*span)

    def dot(self, x: float, y: float, kind: str, title: str) -> Markup:
        """A point that says ``title`` when pointed at. kind: class of the style sheet, such as a role."""
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
            kind, self.at_x(x), self.at_y(y), title
        )

    def keep_clear(self, x: float, y: float) -> None:
        """Names that come later do not cover this place on paper, such as a dot."""
        self.taken.append((x - 6, x + 6, y + 5))

    def name(self, words: str, x: float, y: float, leftwards: bool = False) -> Markup:
        """A name beside a place on paper: where it covers no other, near the place, inside the frame.

        leftwards: left of the place, if there is room; by default right of it.
        """
        words = cut(words, LONGEST)
        width = CHARACTER * len(words)
        y += 4
        right, left = x + 8, x - 8 - width
        sides = (left, right) if leftwards or right + width > self.width else (right, left)
        moves = sorted(range(-60, 61, 6), key=lambda move: (abs(move), move))
        places = [(start, y + move) for move in moves for start in sides]
        start, y = next((place for place in places if self._free(*place, width)), (sides[0], y))
        self.taken.append((start, start + width, y))
        return text(start, y, words, "name")

    def _free(self, start: float, y: float, width: float) -> bool:
        """Whether a name there stays on paper and off everything there is."""
        inside = start >= LEFT and start + width <= self.width and TOP <= y <= self.height - BOTTOM + 2
        return inside and not any(
            a < start + width and start < b and abs(y - other) < 12 for a, b, other in self.taken
        )
