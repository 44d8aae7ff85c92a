"""Figures of methods over several data sets: mean ranks with a critical difference, performance profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from mimbench.across import Comparison, Profile
from mimbench.report.axes import CHARACTER, HEIGHT, LEFT, WIDTH, Axes, text, ticks
from mimbench.report.text import cut, number

LINE = 18  # height of a name
NAMES = 20  # characters of a name, beyond them it is cut
LANE = 8  # width that a bar of a group takes
SERIES = 6  # lines that are told apart by colour and dashes


def critical_difference(comparison: Comparison) -> Markup:
    """Mean ranks, and bars that join methods which the test cannot tell apart; empty where none was taken.

    Demsar's diagram stood upright, which leaves room for names on a phone.
    """
    if comparison.friedman is None:
        return Markup("")
    names, means = list(comparison.mean_ranks.index), comparison.mean_ranks.to_list()
    place = {name: i for i, name in enumerate(names)}
    spans = [(place[group[0]], place[group[-1]]) for group in comparison.groups]
    lanes = _lanes(spans)
    beside = 12 + LANE * (max(lanes, default=-1) + 1)  # room for the bars
    left = 12 + 1.1 * CHARACTER * max(len(cut(name, NAMES)) for name in names)
    right = max(WIDTH - beside, left + 120)
    width = right + beside
    top, bottom = 34, 34 + LINE * len(names)

    def x(rank: float) -> float:
        return left + (right - left) * (rank - 1) / (len(names) - 1)

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
            width,
            bottom + 36,
            f"mean ranks of {len(names)} methods over {len(comparison.blocks)} data sets; bars join methods "
            "that the test cannot tell apart; the numbers are in the table",
        )
    ]
    for tick in ticks(1, len(names)):
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x(tick), top - 6, bottom))
        parts.append(text(x(tick), bottom + 14, f"{tick:g}", "axis middle"))
    parts.append(text((left + right) / 2, bottom + 30, "mean rank, 1 is best", "axis middle"))
    reach = min(comparison.critical_difference, len(names) - 1)
    parts.append(
        Markup('<path class="tick" d="M{:.1f} {y}h{:.1f}m0 -4v8M{:.1f} {a}v8"/>').format(
            x(1), x(1 + reach) - x(1), x(1), y=18, a=14
        )
    )
    parts.append(text(x(1), 10, f"critical difference {number(comparison.critical_difference)}", "axis"))
    for i, (name, mean) in enumerate(zip(names, means, strict=True)):
        y = top + LINE * (i + 0.5)
        parts.append(text(left - 8, y + 4, cut(name, NAMES), "name end"))
        parts.append(
            Markup(
                '<circle class="method" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>'
            ).format(x(mean), y, f"{name}: mean rank {mean:.2f}")
        )
    for (first, last), lane in zip(spans, lanes, strict=True):
        parts.append(
            Markup('<path class="tie" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                right + 14 + LANE * lane, top + LINE * (first + 0.2), top + LINE * (last + 0.8)
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each span, such that those that overlap lie beside each other. Spans start in order."""
    ends: list[int] = []
    lanes = []
    for first, last in spans:
        lane = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes


def profile(profile: Profile, names: Sequence[str]) -> Markup:
    """On which share of the blocks each of up to ``SERIES`` methods is within a factor of the best."""
    names = names[:SERIES]
    ratios = profile.ratios.loc[list(names)]
    finite = [r for r in ratios.to_numpy().ravel().tolist() if math.isfinite(r)]
    most = min(max(1.02 * max(finite, default=1.0), 1.05), 2.0)
    rows = math.ceil(len(names) / 2)
    height = HEIGHT + LINE * rows
    axes = Axes((1.0, most), (0.0, 1.0), factor=100)
    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH,
            height,
            f"share of {len(profile.blocks)} blocks on which a method is within a factor of the best, "
            f"{len(names)} methods; the numbers are in the table",
        ),
        axes.grid("best score / own score"),
    ]
    for i, name in enumerate(names):
        steps = sorted(r for r in ratios.loc[name] if r <= most)
        share, path = 0.0, f"M{axes.at_x(1):.1f} {axes.at_y(0):.1f}"
        for done, ratio in enumerate(steps, start=1):
            share = done / len(profile.blocks)
            path += f"H{axes.at_x(ratio):.1f}V{axes.at_y(share):.1f}"
        path += f"H{axes.at_x(most):.1f}"
        kind = f"line series-{i}"
        parts.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(kind, path, name))
        x, y = LEFT + (WIDTH - LEFT) / 2 * (i % 2), HEIGHT + LINE * (i // 2) + 8
        parts.append(Markup('<path class="{}" d="M{:.1f} {:.1f}h28"/>').format(kind, x, y))
        parts.append(text(x + 34, y + 4, cut(name, NAMES), "name"))
    return Markup("").join([*parts, Markup("</svg>")])
