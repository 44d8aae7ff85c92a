"""What is not beaten in two things at once: the Pareto front of scores against their cost."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, score) pairs that no other beats, cheapest first.

    One beats another when it costs no more and scores no less, and is better in one of the two. Equal pairs
    beat each other in nothing, so both stay. Numbers must not be NaN.
    """
    kept: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not kept or points[place][1] > points[kept[-1]][1] or points[place] == points[kept[-1]]:
            kept.append(place)
    return kept
