"""What the page draws and what it says in words are the same, and true."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mimbench.report.axes import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axes
from mimbench.report.figures import LABELLED, Point, scatter
from mimbench.report.page import html
from mimbench.report.pareto import front

from .synthetic import COST, Board, only


def beaten(one: tuple[float, float], two: tuple[float, float]) -> bool:
    """Whether ``two`` is nowhere worse than ``one`` and somewhere better: the definition."""
    return two[0] <= one[0] and two[1] >= one[1] and two != one


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.integers(1, 6 if seed % 2 else 60, size=(40, 2))]
    expected = {i for i, one in enumerate(points) if not any(beaten(one, two) for two in points)}
    found = front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_nothing_has_no_front_and_one_is_its_own():
    assert front([]) == []
    assert front([(3.0, 0.5)]) == [0]


def drawn(board: Board) -> str:
    return html([only(board)], board.folder, board.folder)


def test_floor_and_ceiling_are_no_part_of_the_front(board):
    """A ceiling that is cheapest and best would leave one method standing on its own front."""
    for variant, score, pflops, role in (
        ("supervised", 0.95, 1, "ceiling"),
        ("pixels", 0.9, 1, "floor"),
        ("cheap", 0.5, 2, "method"),
        ("worse", 0.45, 3, "method"),
        ("dear", 0.7, 4, "method"),
    ):
        cost = {**COST, "flops": pflops * 1e15, "wall_seconds": 100.0 * pflops}
        board.evaluate(variant, score, role=role, cost=cost)
    page = drawn(board)
    told = re.findall(r"On the front, cheapest first: (.*?)</p>", page)
    assert [re.findall(r"<b>(.*?)</b>", words) for words in told] == [["cheap", "dear"]] * 2
    steps = re.search(r'class="front" d="M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H(\d+)"', page)
    dots = {
        name: (x, y)
        for x, y, name in re.findall(
            r'<circle class="method" cx="([\d.]+)" cy="([\d.]+)" r="4.5"><title>(\w+)', page
        )
    }
    assert steps is not None
    assert steps.groups()[:2] == dots["cheap"]
    assert steps.groups()[2:4] == dots["dear"]


def test_what_the_budget_holds_equal_is_no_axis(board):
    """At equal computation the last step's rounding would decide who stands on the front."""
    for place, variant in enumerate(("one", "two", "three")):
        cost = {**COST, "flops": 1e15 * (1 + place / 1000), "wall_seconds": 100.0 * (1 + place)}
        board.evaluate(variant, 0.5 + place / 10, cost=cost)
    page = drawn(board)
    assert re.findall(r"<figcaption>(linprobe@1[^<]*)</figcaption>", page) == [
        "linprobe@1 top1 % against time in min"
    ]


def test_of_many_points_only_the_front_and_references_are_named():
    """Sixty names on one figure cover each other and everything else."""
    points = [Point(f"m{i}", "method", 1 + i, 0.5 - i / 1000, 0.4, 0.6) for i in range(LABELLED + 1)]
    ceiling = Point("supervised", "ceiling", 5, 0.9, 0.8, 0.95)
    floors = [(f"random{i}", 0.1 + i / 100) for i in range(9)]
    figure = scatter([*points, ceiling], floors, "cost", "top1", True, points[:1])
    names = re.findall(r'<text class="name"[^>]*>(.*?)</text>', figure)
    assert sorted(names) == ["m0", "random0", "random8", "supervised"]
    assert figure.count('class="level"') == 2


def test_a_front_of_a_thousand_is_drawn_whole_and_named_in_part():
    """Looking for room for a thousand names among a thousand dots takes minutes."""
    points = [Point(f"m{i}", "method", 1 + i, i / 1000, i / 1000, i / 1000) for i in range(1000)]
    figure = scatter(points, [], "cost", "top1", True, points)
    names = re.findall(r'<text class="name"[^>]*>(.*?)</text>', figure)
    assert len(names) == LABELLED
    assert {"m0", "m999"} <= set(names)
    (steps,) = re.findall(r'class="front" d="([^"]*)"', figure)
    assert steps.count("V") == 999


def test_names_lie_inside_the_frame_and_apart():
    rng = np.random.default_rng(0)
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    places = [(axes.at_x(x), axes.at_y(y)) for x, y in rng.random((LABELLED, 2))]
    for place in places:
        axes.keep_clear(*place)
    boxes = []
    for number, place in enumerate(places):
        name = f"method {number}"
        x, y = map(float, re.findall(r'[xy]="([-\d.]+)"', axes.name(name, *place)))
        boxes.append((x, x + 7.2 * len(name), y))
    for number, (start, end, y) in enumerate(boxes):
        assert start >= LEFT
        assert end <= WIDTH
        assert TOP <= y <= HEIGHT - BOTTOM + 2
        for other_start, other_end, other_y in boxes[:number]:
            assert end <= other_start or other_end <= start or abs(y - other_y) >= 11.9
