"""The section over several data sets: what it says, what it draws, and that names stay names."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from mimbench import across
from mimbench.board import load, tables, write
from mimbench.report import across_figures

from .synthetic import Board

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}"


def fill(board: Board, sets: int, names: list[str], protocols: tuple[str, ...] = ("knn",)) -> None:
    rng = np.random.default_rng(0)
    for place, (at, name) in ((p, pair) for p in range(sets) for pair in enumerate(names)):
        data = {"name": f"set{place}", "fingerprint": f"{place:02x}" * 32}
        for protocol in protocols:
            accuracy = float(np.clip(0.85 - 0.05 * at + rng.normal(0, 0.02), 0, 1))
            board.evaluate(name, accuracy, protocol=protocol, data=data)


def section(board: Board) -> str:
    """Its HTML, empty where the page has none."""
    (path,) = write(board.folder, ("html",))
    found = re.search(r'<section id="across".*?</section>', path.read_text(), re.DOTALL)
    return found[0] if found else ""


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_a_board_of_one_number_a_method_says_nothing_of_several_data_sets(board):
    fill(board, 1, ["mae", "beit"])
    assert section(board) == ""


def test_too_few_data_sets_are_ranked_and_told_how_many_are_missing(board):
    fill(board, 3, ["mae", "beit", "hpm"])
    html = section(board)
    assert "knn@1, 3 data sets" in html
    assert "at least 5 data sets, 2 more than these" in html
    assert "critical difference" not in html
    assert drawings(html) == []
    assert "3 of 3" in html  # mae is the best on all


def test_with_five_data_sets_the_test_and_its_diagram_stand_on_the_page(board):
    fill(board, 5, ["mae", "beit", "hpm", "simmim", HOSTILE])
    board.evaluate("gap", 0.9, protocol="knn", data={"name": "set0", "fingerprint": "00" * 32})
    html = section(board)
    assert "Friedman’s test finds that the methods differ" in html
    assert "gap (knn@1 on set1: not run and 3 more)" in html
    assert "<script>" not in html
    assert "{{ 7 * 7 }}" in html
    assert " style=" not in html
    diagram, _ = drawings(html)
    assert len(diagram.findall("circle")) == 5
    names = [each.text for each in diagram.iter("text") if "name" in each.attrib["class"]]
    assert names[0] == "mae"


def test_a_protocol_without_two_complete_methods_says_so(board):
    fill(board, 2, ["mae", "beit"])
    for name, place in (("mae", 0), ("beit", 1)):
        board.evaluate(
            name, 0.5, protocol="linprobe", data={"name": f"set{place}", "fingerprint": f"{place:02x}" * 32}
        )
    assert "No method has a number on each of set0, set1" in section(board)


def test_bars_of_the_diagram_join_exactly_the_groups():
    rng = np.random.default_rng(5)
    scores = pd.DataFrame(
        rng.random((9, 12)) + np.linspace(1.5, 0, 9)[:, None], index=[f"m{i}" for i in range(9)]
    )
    one = across.Comparison("knn@1", tuple(range(12)), scores, ())  # type: ignore[arg-type]
    drawing = ElementTree.fromstring(across_figures.critical_difference(one))
    dots = {d.find("title").text.split(":")[0]: d.attrib for d in drawing.findall("circle")}
    assert [float(at["cy"]) for at in dots.values()] == sorted(float(at["cy"]) for at in dots.values())
    joined = set()
    for bar in (p.attrib["d"] for p in drawing.findall("path") if p.attrib["class"] == "tie"):
        x, low, high = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)", bar).groups())
        joined.add(tuple(name for name, at in dots.items() if low <= float(at["cy"]) <= high))
        assert x < float(drawing.attrib["viewBox"].split()[2])
    assert len(one.groups) > 1
    assert joined == set(one.groups)
    # The length of the critical difference is to scale with the places of the ranks.
    bar = next(p.attrib["d"] for p in drawing.findall("path") if p.attrib["class"] == "tick")
    length = float(re.search(r"h([\d.]+)", bar)[1])
    first, last = one.mean_ranks.index[[0, -1]]
    scale = (float(dots[last]["cx"]) - float(dots[first]["cx"])) / (
        one.mean_ranks[last] - one.mean_ranks[first]
    )
    assert length == pytest.approx(scale * one.critical_difference, abs=0.3)


def test_bars_that_overlap_never_share_a_lane():
    rng = np.random.default_rng(0)
    for _ in range(100):
        starts = np.sort(rng.choice(30, 8, replace=False))
        spans = [(int(a), int(a + rng.integers(1, 9))) for a in starts]
        lanes = across_figures._lanes(spans)
        for lane in set(lanes):
            own = [span for span, at in zip(spans, lanes, strict=True) if at == lane]
            assert all(a[1] < b[0] for a, b in pairwise(own))


def test_lines_of_the_profile_end_where_counting_says():
    frame = pd.DataFrame([[0.8, 0.6], [0.4, 0.5], [0.0, 0.1]], index=["a", "b", "c"], columns=["x", "y"])
    profile = across.Profile((1, 2), frame, ())  # type: ignore[arg-type]
    drawing = ElementTree.fromstring(across_figures.profile(profile, ["a", "b", "c"]))
    lines = {
        p.find("title").text: p.attrib["d"] for p in drawing.findall("path") if p.find("title") is not None
    }
    heights = {
        name: float(re.findall(r"V([\d.]+)", path)[-1]) if "V" in path else math.nan
        for name, path in lines.items()
    }
    top = heights["a"]
    assert heights["b"] == top  # both of its scores are at least half the best
    assert math.isnan(heights["c"])  # neither is
    assert lines["a"].count("V") == 2


def test_methods_that_are_all_alike_are_drawn_without_error(board):
    hits = board.hits(0.5, 0)
    for place in range(6):
        for name in ("mae", "beit", "hpm"):
            data = {"name": f"set{place}", "fingerprint": f"{place:02x}" * 32}
            board.evaluate(name, protocol="knn", hits=hits, data=data)
    html = section(board)
    assert "finds no difference among the methods" in html
    assert len(drawings(html)) == 2
    (one,) = across.comparisons(tables(load(board.folder)))
    assert one.mean_ranks.to_list() == [2, 2, 2]
    assert [set(group) for group in one.groups] == [{"mae", "beit", "hpm"}]
