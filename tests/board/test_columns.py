"""Columns: recipes and other data sets beside the protocol, in files and on the console."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mimbench.board import load, summary, tables, write
from mimbench.errors import UserError

from .synthetic import SELECTION, only, printed

ADE = {"name": "ade20k:streets", "fingerprint": "aa" * 32, "task": "segmentation"}
BIRDS = {"name": "imagefolder:birds", "fingerprint": "bb" * 32, "task": "classification"}
RESULTS = sorted(path.parent for path in Path(__file__).parents[2].glob("results/*/records"))


# --- recipes and other data are columns of one table


def test_a_recipe_and_other_data_stand_beside_the_protocol_in_one_table(board):
    for variant, accuracy in (("mae", 0.6), ("beit", 0.4)):
        board.evaluate(variant, accuracy)
        board.evaluate(variant, accuracy + 0.1, preset="mae", fields={"epochs": 90})
        board.evaluate(variant, accuracy + 0.2, data=BIRDS)
    table = only(board, first=("linprobe",))
    assert {c.title: round(table.rows[0].cells[i].value, 3) for i, c in enumerate(table.columns)} == {
        "linprobe@1": 0.6,
        "linprobe:mae@1": 0.7,
        "linprobe@1 on imagefolder:birds": 0.8,
    }
    assert table.columns[0].title == "linprobe@1"
    assert table.differs == ()
    assert [row.variant for row in table.rows] == ["mae", "beit"]


def test_a_recipe_is_its_own_column_even_with_the_fields_of_the_protocol(board):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.7, preset="ours")
    assert [c.label for c in only(board).columns] == ["linprobe@1", "linprobe:ours@1"]


def test_the_settings_own_data_named_again_is_no_other_data(board):
    own = {"name": "moved", "fingerprint": board.setting["fingerprint"], "task": "classification"}
    board.evaluate("mae", 0.6)
    board.evaluate("beit", 0.5, data=own)
    assert [c.title for c in only(board).columns] == ["linprobe@1"]


def test_data_in_a_moved_folder_stays_one_column(board):
    board.evaluate("mae", 0.6, data=BIRDS)
    board.evaluate("beit", 0.5, data={**BIRDS, "name": "imagefolder:birds2"})
    table = only(board)
    assert len(table.columns) == 1
    assert [r.cells[0].state for r in table.rows] == ["value", "value"]


def test_two_data_sets_of_one_name_are_told_apart_by_their_content(board):
    board.evaluate("mae", 0.6, data=BIRDS)
    board.evaluate("mae", 0.7, data={**BIRDS, "fingerprint": "cc" * 32})
    assert {c.remarks for c in only(board).columns} == {
        ("on imagefolder:birds (content bbbbbbbb)",),
        ("on imagefolder:birds (content cccccccc)",),
    }


@pytest.mark.parametrize("change", [{"preset": "mae"}, {"data": BIRDS}])
def test_an_older_definition_of_a_recipe_or_on_other_data_gets_a_table_of_its_own(board, change):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.5, protocol_version=1, **change)
    board.evaluate("mae", 0.7, protocol_version=2, **change)
    found = tables(load(board.folder))
    assert [[(c.label, c.version) for c in t.columns] for t in found][1][0][1] == 1
    assert sorted(c.version for c in found[0].columns) == [1, 2]
    name = "linprobe:mae" if "preset" in change else "linprobe on imagefolder:birds"
    assert [t.differs for t in found] == [((f"{name} version", "2"),), ((f"{name} version", "1"),)]


@pytest.mark.parametrize("change", [{}, {"preset": "mae"}, {"data": BIRDS}])
def test_two_answers_for_one_cell_stop_the_table(board, change):
    for needs in ("a", "b"):
        board.evaluate("mae", 0.6, needs={needs * 16: "1" * 64}, **change)
    with pytest.raises(UserError, match="two records answer for mae seed 0 under linprobe") as error:
        tables(load(board.folder))
    if change:
        assert (":mae@1" if "preset" in change else "on imagefolder:birds") in str(error.value)


def test_a_recipe_and_other_data_never_mix_weights_into_a_row(board):
    board.evaluate("mae", 0.6, needs={"a" * 16: "1" * 64})
    board.evaluate("mae", 0.6, needs={"b" * 16: "2" * 64}, preset="mae", data=BIRDS)
    with pytest.raises(UserError, match="two sets of weights"):
        tables(load(board.folder))


def test_columns_come_in_the_order_asked_for(board):
    for hour, change in enumerate(({"protocol": "knn"}, {}, {"preset": "mae"}, {"data": BIRDS})):
        board.evaluate("mae", 0.5, finished=f"2026-01-01T0{hour}:00:00+00:00", **change)
    assert [c.title for c in only(board, first=("linprobe:mae", "linprobe")).columns] == [
        "linprobe:mae@1",
        "linprobe@1",
        "linprobe@1 on imagefolder:birds",
        "knn@1",
    ]


def test_a_recipe_that_chooses_on_test_says_so_in_its_head(board):
    selection = {**SELECTION, "candidates": [{"lr": 0.1, "test_top1": 0.6}, {"lr": 0.2, "test_top1": 0.5}]}
    board.evaluate("mae", 0.6, preset="mae", fields={"choose_on": "test"}, selection=selection)
    board.evaluate("mae", 0.5)
    table = only(board)
    assert {c.label: c.remarks for c in table.columns} == {
        "linprobe@1": (),
        "linprobe:mae@1": ("chooses on test",),
    }
    assert "chooses on test" in printed(board)
    frame = summary([table])
    assert dict(zip(frame.preset, frame.chosen_on, strict=True)) == {"": "validation", "mae": "test"}
    assert frame[frame.preset == "mae"].chosen.item() == "0: lr 0.2"  # its score is no choice


# --- files and console


def test_csv_says_what_was_evaluated_on_which_data(board):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.7, preset="mae")
    board.evaluate("mae", 0.5, protocol="upernet", data=ADE, fields={"steps": 100})
    (path,) = write(board.folder, ("csv",))
    frame = pd.read_csv(path, keep_default_na=False).set_index(["protocol", "preset"])
    assert frame.evaluated_on.to_dict() == {
        ("linprobe", ""): "parquet:imagenette128",
        ("linprobe", "mae"): "parquet:imagenette128",
        ("upernet", ""): "ade20k:streets",
    }
    assert frame.loc[("upernet", ""), "evaluated_fingerprint"] == ADE["fingerprint"]
    assert set(frame.data) == {"parquet:imagenette128"}
    assert json.loads(frame.loc[("upernet", ""), "protocol_fields"]) == {"steps": 100}
    assert set(frame.unit) == {"share"}


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_dozen_columns_are_spread_over_the_console_and_none_is_lost(board, width):
    names, other = [f"protocol{i}" for i in range(12)], {"data": BIRDS}
    for variant in ("mae", "beit", "hpm[mask_ratio=0.9]"):
        for i, protocol in enumerate(names):
            for seed in (0, 1):
                board.evaluate(variant, 0.3 + i / 50, seed, protocol, **(other if i % 3 else {}))
    text = printed(board, width)
    assert max(map(len, text.splitlines())) <= width
    for name in names:
        assert text.count(f"{name}@1") == 1
    assert text.count("hpm[") > 1
    assert text.count("time") == 1
    assert "…" not in text


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_boards_of_this_repository_still_load(folder):
    found = tables(load(folder))
    assert sum(len(table.rows) for table in found) >= 3
    kept = pd.read_csv(folder / "leaderboard.csv", dtype={"rank": str}).set_index(
        ["table", "variant", "protocol", "evaluated_on"]
    )
    again = summary(found).set_index(["table", "variant", "protocol", "evaluated_on"])
    for name in ("value", "low", "high", "p_above"):
        np.testing.assert_allclose(again[name], kept[name].reindex(again.index), rtol=1e-12)
    # A CSV that a spreadsheet opens has an apostrophe before what starts like a formula; ranks do not.
    assert again["rank"].tolist() == kept["rank"].reindex(again.index).fillna("").tolist()
