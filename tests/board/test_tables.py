"""What may share a table, what stops it, and what stays a hole."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mimbench import records, stats
from mimbench.board import Row, Table, load, summary, tables, write
from mimbench.errors import UserError
from mimbench.report import costs

from .synthetic import COST, SELECTION, only, printed


def row(table: Table, variant: str) -> Row:
    (found,) = [r for r in table.rows if r.variant == variant and not r.older]
    return found


# --- what may stand side by side


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"budget": {"unit": "epochs", "amount": 20.0}}, ("budget", "20 epochs")),
        ({"backbone": "vit_small_patch16"}, ("backbone", "vit_small_patch16")),
        ({"precision": "fp32"}, ("precision", "fp32")),
        ({"recipe": "shared"}, ("recipe", "shared")),
        ({"batch_size": 128}, ("batch size", "128")),
        ({"image_size": 96}, ("image size", "96")),
        ({"fingerprint": "1e" * 32}, ("content of the data", "1e1e1e1e")),
    ],
)
def test_different_settings_never_share_a_table_and_the_difference_is_named(board, change, named):
    board.evaluate("mae", 0.6)
    board.with_setting(**change).evaluate("beit", 0.7)
    found = tables(load(board.folder))
    assert sorted(len(table.rows) for table in found) == [1, 1]
    assert [name for name, _ in found[0].differs] == [named[0]]
    assert named in {difference for table in found for difference in table.differs}
    assert f"{named[0]} ({named[1]})" in printed(board, width=200)


def test_other_data_is_named_without_its_fingerprint(board):
    board.evaluate("mae", 0.6)
    board.with_setting(data="digits", fingerprint="1e" * 32).evaluate("mae", 0.9)
    assert [dict(table.differs) for table in tables(load(board.folder))] == [
        {"data": "digits"},
        {"data": "parquet:imagenette128"},
    ]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"protocol_version": 2}, ("linprobe version", "2")),
        ({"fields": {"epochs": 50}}, ("linprobe epochs", "50")),
    ],
)
def test_protocol_versions_and_fields_never_share_a_table(board, change, difference):
    for variant in ("mae", "beit", "hpm"):
        board.evaluate(variant, 0.6)
        board.evaluate(variant, 0.6, protocol="knn")
    board.evaluate("mae", 0.7, **change)
    found = tables(load(board.folder))
    assert len(found) == 2
    for table in found:
        assert len({column.protocol for column in table.columns}) == len(table.columns)
    assert difference in {d for table in found for d in table.differs}
    values = [r.cells[0].value for table in found for r in table.rows if r.variant == "mae"]
    assert not any(0.6 < value < 0.7 for value in values)  # never averaged


def test_a_single_table_has_no_difference_to_name(board):
    board.evaluate("mae", 0.6)
    assert only(board).differs == ()


# --- two answers


def test_two_answers_for_one_cell_stop_the_table_and_name_both_files(board):
    one = board.evaluate("mae", 0.6, needs={"a" * 16: "1" * 64})
    two = board.evaluate("mae", 0.7, needs={"b" * 16: "2" * 64})
    with pytest.raises(UserError) as error:
        tables(load(board.folder))
    assert f"records/{one.id}.json" in str(error.value)
    assert f"records/{two.id}.json" in str(error.value)
    assert "mae seed 0 under linprobe@1" in str(error.value)


def test_two_answers_say_what_the_pretrainings_differ_in(board):
    for rate in (1e-3, 2e-3):
        trained = board.pretrain("mae", recipe={"base_lr": rate})
        board.evaluate("mae", 0.6, needs={trained.id: "1" * 64})
    with pytest.raises(UserError, match="pre-trained with a different recipe"):
        tables(load(board.folder))


def test_a_row_never_mixes_the_weights_of_two_pretrainings(board):
    one = board.evaluate("mae", 0.6, needs={"a" * 16: "1" * 64})
    two = board.evaluate("mae", 0.7, protocol="knn", needs={"a" * 16: "2" * 64})
    with pytest.raises(UserError, match="two sets of weights") as error:
        tables(load(board.folder))
    assert one.id in str(error.value)
    assert two.id in str(error.value)


def test_a_failure_is_no_second_answer(board):
    board.evaluate("mae", error="out of memory", needs={"a" * 16: "1" * 64})
    board.evaluate("mae", 0.6, needs={"b" * 16: "2" * 64})
    assert row(only(board), "mae").cells[0].value == pytest.approx(0.6)


def test_a_record_that_contradicts_its_own_outcomes_is_refused(board):
    record = board.evaluate("mae", 0.6, metrics={"top1": 0.9})
    with pytest.raises(UserError, match=f"records/{record.id}.json says top1 0.9"):
        tables(load(board.folder))


def test_outcomes_of_another_test_set_are_refused(board):
    board.evaluate("mae", 0.6, seed=0)
    board.evaluate("mae", seed=1, hits=np.ones(40, bool))
    with pytest.raises(UserError, match="500 and 40 images"):
        tables(load(board.folder))


# --- versions


@pytest.mark.parametrize(
    "newer",
    [{"method_version": 2}, {"provided": {"tokenizer": {"method": "vqvae", "method_version": 2}}}],
)
def test_an_older_version_stays_apart_and_unranked(board, newer):
    board.evaluate("beit", 0.9, provided={"tokenizer": {"method": "vqvae", "method_version": 1}})
    board.evaluate("beit", 0.5, **newer, needs={"b" * 16: "2" * 64})
    board.evaluate("mae", 0.4)
    table = only(board)
    assert [(r.variant, r.older, r.cells[0].rank) for r in table.rows] == [
        ("beit", False, "1"),
        ("mae", False, "2"),
        ("beit", True, ""),
    ]


@pytest.mark.parametrize(("old", "new"), [((0, 1), (0,)), ((0,), (0, 1))])
def test_versions_do_not_make_holes_in_each_other(board, old, new):
    for seed in old:
        board.evaluate("mae", 0.5, seed)
    for seed in new:
        board.evaluate("mae", 0.6, seed, method_version=2)
    rows = [(r.older, r.cells[0].state, tuple(r.cells[0].seeds)) for r in only(board).rows]
    assert rows == [(False, "value", new), (True, "value", old)]


# --- seeds, holes, failures


def test_a_number_is_the_mean_over_seeds_with_its_interval_and_spread(board):
    values = {0: 0.6, 1: 0.64, 2: 0.62}
    hits = []
    for seed, value in values.items():
        board.evaluate("mae", value, seed)
        hits.append(board.hits(value, seed, tilt=len("mae")))
    cell = row(only(board), "mae").cells[0]
    assert cell.value == pytest.approx(0.62)
    assert cell.spread == pytest.approx(np.std(list(values.values()), ddof=1))
    assert (cell.low, cell.high) == stats.image_interval(np.stack(hits))
    assert cell.images == 500
    assert {seed: value for seed, (value, _) in cell.seeds.items()} == pytest.approx(values)


def test_the_spread_of_one_seed_is_a_hole_and_not_zero(board):
    board.evaluate("mae", 0.6)
    assert math.isnan(row(only(board), "mae").cells[0].spread)
    assert pd.isna(summary([only(board)]).spread).all()


def test_no_mean_skips_a_missing_seed(board):
    for seed in (0, 1, 2):
        board.evaluate("mae", 0.6, seed)
        if seed < 2:
            board.evaluate("beit", 0.9, seed)
    cell = row(only(board), "beit").cells[0]
    assert (cell.state, cell.reason) == ("hole", "2 of 3 seeds")
    assert math.isnan(cell.value)
    assert math.isnan(row(only(board), "beit").cost["hours"])
    assert row(only(board), "mae").cells[0].rank == "1"


def test_a_trained_seed_without_evaluation_is_missed(board):
    for seed in (0, 1):
        board.pretrain("mae", seed)
    board.evaluate("mae", 0.6, 0)
    assert row(only(board), "mae").cells[0].reason == "1 of 2 seeds"


def test_seeds_can_be_chosen(board):
    for seed in (0, 1):
        board.evaluate("mae", 0.6, seed)
    board.evaluate("beit", 0.9, 0)
    assert row(only(board, seeds=(0,)), "beit").cells[0].value == pytest.approx(0.9)


def test_a_protocol_that_was_not_run_is_a_hole(board):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.5, protocol="knn")
    board.evaluate("beit", 0.6)
    table = only(board, first=("linprobe",))
    assert [column.label for column in table.columns] == ["linprobe@1", "knn@1"]
    assert [(c.state, c.reason) for c in row(table, "beit").cells] == [("value", ""), ("hole", "not run")]


def test_a_failed_evaluation_is_shown_with_its_reason(board):
    board.evaluate("mae", 0.6)
    failed = board.evaluate("beit", error="too few samples for k = 200")
    table = only(board)
    assert row(table, "beit").cells[0].reason == "failed: too few samples for k = 200"
    assert table.failures == (("beit · linprobe · seed 0", "too few samples for k = 200", failed.id),)


def test_a_failed_pretraining_fails_all_cells_of_its_row(board):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.6, protocol="knn")
    board.pretrain("beit", error="the loss became NaN")
    reasons = [cell.reason for cell in row(only(board), "beit").cells]
    assert reasons == ["failed: the loss became NaN"] * 2


def test_one_failed_seed_is_named_and_not_averaged_away(board):
    for seed in (0, 1):
        board.evaluate("mae", 0.6, seed)
    board.evaluate("beit", 0.7, 0)
    board.pretrain("beit", 1, error="the loss became NaN")
    cell = row(only(board), "beit").cells[0]
    assert (cell.state, cell.reason) == ("failed", "seed 1 failed: the loss became NaN")
    assert math.isnan(cell.value)


def test_a_board_of_failures_alone_can_be_shown(board):
    board.pretrain("mae", error="the loss became NaN")
    assert "the loss became NaN" in printed(board)
    for path in write(board.folder):
        assert path.exists()


# --- order and ranks


def test_floor_and_ceiling_stand_in_order_and_are_not_ranked(board):
    board.evaluate("supervised", 0.9, role="ceiling", external="labels")
    board.evaluate("mae", 0.7)
    board.evaluate("random", 0.5, role="floor")
    board.evaluate("beit", 0.3, external="tokenizer")
    table = only(board)
    assert [(r.variant, r.role, r.cells[0].rank) for r in table.rows] == [
        ("supervised", "ceiling", ""),
        ("mae", "method", "1"),
        ("random", "floor", ""),
        ("beit", "method", "2"),
    ]


def test_methods_that_cannot_be_told_apart_share_a_rank(board):
    hits = board.hits(0.6, 0)
    swapped = hits.copy()
    swapped[np.flatnonzero(hits)[:5]] = False
    swapped[np.flatnonzero(~hits)[:4]] = True
    board.evaluate("mae", hits=hits)
    board.evaluate("hpm", hits=swapped)
    board.evaluate("beit", 0.2)
    table = only(board)
    assert [(r.variant, r.cells[0].rank) for r in table.rows] == [("mae", "1="), ("hpm", "1="), ("beit", "3")]
    assert row(table, "hpm").cells[0].p_above == pytest.approx(1.0)
    assert "1=" in printed(board)


def test_columns_stand_in_the_order_of_evaluation_unless_told_otherwise(board):
    for hour, protocol in enumerate(("linprobe", "finetune", "knn")):
        board.evaluate("mae", 0.5, protocol=protocol, finished=f"2026-01-01T0{hour}:00:00+00:00")
    assert [c.protocol for c in only(board).columns] == ["linprobe", "finetune", "knn"]
    told = only(board, first=("knn",))
    assert [c.protocol for c in told.columns] == ["knn", "linprobe", "finetune"]


def test_holes_come_last(board):
    board.evaluate("mae", 0.1)
    board.evaluate("beit", error="no")
    assert [r.variant for r in only(board).rows] == ["mae", "beit"]


def test_a_number_without_outcomes_of_images_has_no_interval_and_no_rank(board):
    board.evaluate("mae", protocol="gap", metrics={"gap": 41.5}, outcomes={}, facts={"unit": "number"})
    cell = row(only(board), "mae").cells[0]
    assert (cell.value, cell.rank) == (41.5, "")
    assert math.isnan(cell.low)
    assert "41.5" in printed(board)


def test_what_validation_chose_is_told_and_an_edge_of_the_grid_is_marked(board):
    edge = "lr = 1 is the highest of 0.1, 0.3, 1"
    board.evaluate("mae", 0.6, selection={**SELECTION, "chosen": 2, "edges": [edge]})
    board.evaluate("beit", 0.5)
    cell = row(only(board), "mae").cells[0]
    assert (cell.candidates, cell.chosen, cell.edges) == (3, {0: "lr 1; batch norm yes"}, (edge,))
    assert row(only(board), "beit").cells[0].edges == ()
    text = printed(board)
    assert "60.0†" in text
    assert "50.0 " in text


# --- cost


def test_cost_includes_what_had_to_be_trained_before():
    cost = {**COST, "wall_seconds": 3600.0, "flops": 2e15, "peak_memory_bytes": 2**30}
    tokenizer = {**COST, "wall_seconds": 1800.0, "flops": 1e15, "peak_memory_bytes": 2**31}
    amounts = costs.amounts({**cost, "external": {"vqvae": tokenizer}})
    assert amounts["hours"] == pytest.approx(1.5)
    assert amounts["before_hours"] == pytest.approx(0.5)
    assert amounts["pflops"] == pytest.approx(3.0)
    assert amounts["memory_gib"] == pytest.approx(2.0)
    assert amounts["images_per_second"] == 250.0
    assert amounts["parameters_m"] == pytest.approx(8.0)
    assert amounts["tokens_m"] == pytest.approx(5.0)
    assert set(amounts) == {cost.key for cost in costs.COSTS}


def test_cost_reads_what_the_trainer_writes():
    """The keys are read as plain JSON, without torch; this holds them against the class that writes them."""
    from mimbench.cost import Cost

    inner = Cost(wall_seconds=1800, flops=1e15, images=10, images_per_second=5.0)
    outer = Cost(wall_seconds=3600, flops=2e15, images=10, images_per_second=7.0, parameters_total=4_000_000)
    cost = outer.with_external(vqvae=inner)
    amounts = costs.amounts(cost.content())
    assert amounts["hours"] == pytest.approx(cost.total["wall_seconds"] / 3600)
    assert amounts["pflops"] == pytest.approx(cost.total["flops"] / 1e15)
    assert (amounts["images_per_second"], amounts["parameters_m"]) == (7.0, 4.0)
    assert math.isnan(amounts["tokens_m"])


def test_what_was_never_trained_costs_nothing_and_has_no_speed():
    amounts = costs.amounts(
        {**COST, "wall_seconds": 0.0, "flops": 0.0, "images": 0, "images_per_second": 0.0}
    )
    assert (amounts["hours"], amounts["pflops"]) == (0.0, 0.0)
    assert math.isnan(amounts["images_per_second"])


def test_cost_is_the_mean_over_seeds(board):
    for seed, hours in ((0, 1.0), (1, 2.0)):
        board.evaluate("mae", 0.6, seed, cost={**COST, "wall_seconds": 3600 * hours})
    assert row(only(board), "mae").cost["hours"] == pytest.approx(1.5)


# --- files


def test_csv_keeps_every_digit_and_the_ids(board):
    third = np.zeros(3, bool)
    third[0] = True
    record = board.evaluate("mae", hits=third)
    (path,) = write(board.folder, ("csv",))
    frame = pd.read_csv(path)
    assert frame.value[0] == 1 / 3
    assert frame.records[0] == record.id
    assert (frame.variant[0], frame.protocol[0], frame.n_seeds[0]) == ("mae", "linprobe", 1)
    assert json.loads(frame.protocol_fields[0]) == {"epochs": 100}


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_spreadsheet_never_runs_a_name(board, name):
    board.evaluate(name, 0.5)
    (path,) = write(board.folder, ("csv",))
    with open(path, encoding="utf-8-sig", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["variant"] == f"'{name}"
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel reads UTF-8 as the local code page


def test_tables_can_be_deleted_and_made_again(board):
    board.evaluate("mae", 0.6)
    first = {path.name: path.read_bytes() for path in write(board.folder)}
    assert set(first) == {"leaderboard.csv", "leaderboard.html"}
    for name in first:
        (board.folder / name).unlink()
    assert {path.name: path.read_bytes() for path in write(board.folder)} == first


def test_a_folder_without_records_is_told_in_a_sentence(tmp_path):
    (tmp_path / "records").mkdir()
    with pytest.raises(UserError, match="no records below"):
        load(tmp_path)
    with pytest.raises(UserError, match="no results folder"):
        load(tmp_path / "nowhere")


def test_a_record_without_a_setting_is_named(board):
    record = board.evaluate("mae", 0.6)
    records.write(board.folder, record.model_copy(update={"content": {"method": "mae"}}))
    with pytest.raises(UserError, match=rf"records/{record.id}.json is damaged \(content.setting"):
        load(board.folder)


# --- console


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_console_tables_fit_the_terminal(board, width):
    for i, variant in enumerate(("mae", "beit", "hpm[mask_ratio=0.9,decoder_depth=4]")):
        for seed in (0, 1, 2):
            board.evaluate(variant, 0.6 + i / 50, seed)
            board.evaluate(variant, 0.5 + i / 50, seed, protocol="knn")
    text = printed(board, width)
    assert max(map(len, text.splitlines())) <= width
    for expected in ("60.0", "±", "95 % interval"):
        assert expected in text
    assert "…" not in text  # nothing is cut off


def test_console_shows_cost_beside_accuracy_in_a_hundred_columns(board):
    for variant in ("mae", "beit"):
        board.evaluate(variant, 0.6)
        board.evaluate(variant, 0.5, protocol="knn")
    text = printed(board)
    for heading in ("time", "images/s", "PFLOP", "GiB"):
        assert heading in text
    assert re.search(r"mae .* 1\.00 +250 +2\.00 +1\.00", text)


@pytest.mark.parametrize(
    ("hours", "shown"),
    [((5.0, 0.1), (1, "h")), ((0.5, 0.001), (60, "min")), ((0.001,), (3600, "s")), ((0.0,), (1, "h"))],
)
def test_a_cost_is_shown_in_the_unit_that_suits_its_table(hours, shown):
    assert costs.BY_KEY["hours"].unit([*hours, math.nan]) == shown


def test_names_are_no_markup(board):
    board.evaluate("mae[bold red]", 0.6)
    assert "mae[bold red]" in printed(board)


# --- the module itself


def test_no_torch_is_imported(board):
    board.evaluate("mae", 0.6)
    code = (
        "import sys; from mimbench.board import *; import mimbench.board as board; "
        "write(sys.argv[1]); console_tables(tables(load(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(board.folder)], check=True, timeout=120)
