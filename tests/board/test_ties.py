"""What would settle a tie: on the page, on the console and in the CSV."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from mimbench import power, stats
from mimbench.board import load, make_layout, save, tables, write
from mimbench.outcomes import Hits, Values
from mimbench.report import ties

from .synthetic import only, printed


def swapped(hits: np.ndarray, lost: int, won: int) -> np.ndarray:
    """So many images fewer, and so many others more."""
    other = hits.copy()
    other[np.flatnonzero(hits)[:lost]] = False
    other[np.flatnonzero(~hits)[:won]] = True
    return other


def test_a_tie_says_how_many_images_would_settle_it(board):
    hits = board.hits(0.6, 0)
    board.evaluate("mae", hits=hits)
    board.evaluate("hpm", hits=swapped(hits, 30, 24))
    table = only(board)
    ((above, below),) = ties.pairs(table, 0)
    cell = below.cells[0]
    assert cell.images_needed == power.images_needed(above.cells[0].outcomes, cell.outcomes)
    assert math.isnan(cell.seeds_needed)
    words = "mae and hpm: 500 test images cannot separate 1.2 points; about 6,100 would"
    assert math.ceil(cell.images_needed / 100) == 61
    assert ties.sentence(table, 0, above, below) == words
    assert f"linprobe@1: {words}" in " ".join(printed(board).split())
    files = {path.suffix: path for path in write(board.folder)}
    assert words in files[".html"].read_text()
    frame = pd.read_csv(files[".csv"]).set_index("variant")
    assert frame.images_needed["hpm"] == cell.images_needed
    assert math.isnan(frame.images_needed["mae"])


def test_neighbours_of_different_groups_are_no_neighbours(board):
    hits = board.hits(0.6, 0)
    for variant, lost, external in (("mae", 0, "none"), ("beit", 24, "tokenizer"), ("hpm", 26, "none")):
        board.evaluate(variant, hits=swapped(hits, lost, 20 * bool(lost)), external=external)
    (grouped,) = tables(load(board.folder), make_layout(group="external"))
    found = {g: ties.pairs(grouped, 0, g) for g in ties.groups(grouped)}
    assert [[(a.variant, b.variant) for a, b in pairs] for pairs in found.values()] == [[("mae", "hpm")], []]
    (html,) = save([grouped], board.folder, ("html",), board.folder)
    assert "mae and hpm" in html.read_text()
    assert "beit and hpm" not in html.read_text()


def test_more_methods_need_more_images_because_chance_has_more_tries(board):
    hits = board.hits(0.6, 0)
    board.evaluate("mae", hits=hits)
    board.evaluate("hpm", hits=swapped(hits, 30, 24))
    for i in range(8):
        board.evaluate(f"other{i}", 0.2 - i / 50)
    cell = only(board).rows[1].cells[0]
    alone = power.images_needed(only(board).rows[0].cells[0].outcomes, cell.outcomes)
    assert cell.images_needed == power.images_needed(
        only(board).rows[0].cells[0].outcomes, cell.outcomes, stats.ALPHA / 9
    )
    assert cell.images_needed > 1.5 * alone


def test_seeds_that_scatter_are_told_with_their_spread(board):
    for seed, lost in enumerate((60, 33, 46)):
        hits = board.hits(0.6 + seed / 50, seed)
        board.evaluate("mae", hits=hits, seed=seed)
        board.evaluate("hpm", hits=swapped(hits, lost, 38), seed=seed)
    table = only(board)
    ((above, below),) = ties.pairs(table, 0)
    spreads = [row.cells[0].spread for row in (above, below)]
    needed = power.seeds_needed(above.cells[0].value - below.cells[0].value, *spreads)
    assert below.cells[0].seeds_needed == needed
    assert 3 < needed < 500
    shown = " and ".join(f"{100 * spread:.1f}" for spread in spreads)
    words = f"3 seeds (spreads {shown}) cannot; about {needed:.0f} would"
    assert words in ties.sentence(table, 0, above, below)


def test_nothing_is_said_of_clear_steps_equal_scores_floors_and_what_is_not_ranked(board):
    hits = board.hits(0.6, 0)
    board.evaluate("mae", hits=hits)
    board.evaluate("hpm", hits=hits)
    board.evaluate("beit", 0.3)
    board.evaluate("random", 0.299, role="floor")
    for variant, spread in (("mae", 1.0), ("beit", 1.1)):
        values = Values(np.random.default_rng(0).normal(0, spread, 50))
        board.evaluate(variant, protocol="diagnostics", outcomes=values, facts={"ranked": False})
    table = only(board)
    assert [ties.pairs(table, place) for place in range(len(table.columns))] == [[], []]
    assert "cannot separate" not in printed(board)
    (html,) = write(board.folder, ("html",))
    assert "What would settle the ties" not in html.read_text()


def test_a_number_that_is_no_share_is_told_in_its_own_unit(board):
    rng = np.random.default_rng(0)
    shared = rng.normal(3, 1, 200)
    for variant, noise, shift in (("mae", 0.4, 0.02), ("beit", 0.5, 0)):
        values = Values(shared + rng.normal(shift, noise, 200))
        board.evaluate(
            variant,
            protocol="depth",
            outcomes=values,
            metrics={"log_depth": values.score},
            facts={"unit": "number"},
        )
    table = only(board)
    ((above, below),) = ties.pairs(table, 0)
    assert "log_depth; about" in ties.sentence(table, 0, above, below)
    assert "points" not in ties.sentence(table, 0, above, below)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(3.2, "about 4"), (87, "about 87"), (2834.2, "about 2,900"), (3e9, "more than 10,000,000")],
)
def test_rough_numbers_have_two_digits(number, shown):
    assert ties._many(number, ties.FAR) == shown


def test_hostile_names_stay_text(board):
    name = "<script>alert(1)</script>{{ 7 * 7 }}[bold]"
    hits = board.hits(0.6, 0)
    board.evaluate("mae", hits=hits)
    board.evaluate(name, hits=swapped(hits, 30, 24))
    (html,) = write(board.folder, ("html",))
    assert "<script>alert" not in html.read_text()
    assert f"mae and {name}" in printed(board, 200)


def test_a_long_table_takes_few_tests_a_method(monkeypatch):
    """All pairs of sixty methods in ten columns would be 17,700 tests, of milliseconds each for AP."""
    calls = []
    real = stats.difference_p
    monkeypatch.setattr(stats, "difference_p", lambda a, b: calls.append(1) or real(a, b))
    rng = np.random.default_rng(0)
    methods = [[Hits(rng.random(400) < 0.8 - i / 400)] for i in range(60)]
    stats.ranks(sorted(methods, key=lambda one: -one[0].score))
    assert len(calls) <= 2 * 59
