"""What `mimbench leaderboard` can be asked for: columns, groups, folders."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mimbench
from mimbench import records, stats
from mimbench.board import Layout, load, make_layout, tables, write
from mimbench.cli import app
from mimbench.commands.leaderboard import leaderboard as command_of
from mimbench.errors import UserError

from .browsing import Watched
from .synthetic import COST, Board, only, printed

BIRDS = {"name": "imagefolder:birds", "fingerprint": "bb" * 32, "task": "classification"}


def titles(table) -> list[str]:
    return [column.title for column in table.columns]


def names(table) -> list[str]:
    return [row.variant for row in table.rows]


# --- columns


@pytest.fixture
def columns(board):
    for variant, linear, nearest in (("mae", 0.6, 0.3), ("beit", 0.5, 0.4)):
        board.evaluate(variant, linear)
        board.evaluate(variant, 1 - linear, preset="mae")
        board.evaluate(variant, nearest, protocol="knn")
        board.evaluate(variant, 1 - nearest, protocol="knn", data=BIRDS)
        numbers = {"unit": "number", "ranked": False}
        board.evaluate(variant, protocol="rankme", metrics={"rank": 9.0}, outcomes={}, facts=numbers)
    return board


@pytest.mark.parametrize(
    ("by", "first", "order"),
    [
        ("linprobe", "linprobe@1", ["mae", "beit"]),
        ("linprobe:mae", "linprobe:mae@1", ["beit", "mae"]),
        ("knn", "knn@1", ["beit", "mae"]),
        ("knn on imagefolder:birds", "knn@1 on imagefolder:birds", ["mae", "beit"]),
        ("knn@1 on imagefolder:birds", "knn@1 on imagefolder:birds", ["mae", "beit"]),
        ("knn on parquet:imagenette128", "knn@1", ["beit", "mae"]),
    ],
)
def test_the_column_asked_for_comes_first_and_sorts(columns, by, first, order):
    table = only(columns, by=(by,))
    assert titles(table)[0] == first
    assert names(table) == order


def test_several_columns_come_in_the_order_asked_for(columns):
    layout = make_layout(by="knn on imagefolder:birds, linprobe:mae")
    (table,) = tables(load(columns.folder), layout)
    assert titles(table)[:2] == ["knn@1 on imagefolder:birds", "linprobe:mae@1"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "knnn"}, "no column of these results is called 'knnn'; did you mean knn"),
        ({"by": "xyz"}, "known are knn, knn on imagefolder:birds, linprobe, linprobe:mae, rankme"),
        ({"by": "linprobe on imagefolder:birds"}, "no column of these results"),
        ({"by": "rankme"}, "rankme describes and does not rank"),
        ({"protocol": "xyz"}, "no column of these results is called 'xyz'"),
        ({"by": "linprobe", "protocol": "knn"}, "no column of these results is called 'linprobe'"),
        ({"group": "colour"}, "no field to group by is called 'colour'"),
        ({"group": "budget", "at": "equal-flops"}, "take budget out of --group"),
        ({"seeds": "one"}, "whole numbers"),
        ({"format": "pdf"}, "no format is called 'pdf'"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence_that_names_it(columns, options, told):
    with pytest.raises(UserError, match=told):
        mimbench.leaderboard(columns.folder, **options)


def test_only_the_columns_asked_for_are_kept(columns):
    assert titles(only(columns, only=("knn",))) == ["knn@1", "knn@1 on imagefolder:birds"]
    assert titles(only(columns, only=("knn on imagefolder:birds", "linprobe"))) == [
        "linprobe@1",
        "knn@1 on imagefolder:birds",
    ]


def test_a_row_that_the_kept_columns_lack_stays_as_a_hole(columns):
    columns.pretrain("hpm")
    cells = {
        row.variant: row.cells[0].reason for row in only(columns, only=("knn on imagefolder:birds",)).rows
    }
    assert cells["hpm"] == "not run"


def test_an_older_protocol_version_is_named_and_marked(board):
    board.evaluate("mae", 0.6, protocol_version=2)
    board.evaluate("mae", 0.5, protocol_version=1)
    newer, older = tables(load(board.folder))
    assert [newer.columns[0].older, older.columns[0].older] == [False, True]
    assert [body.older for body in older.bodies] == [True]
    assert "older version, now 2" in older.columns[0].remarks
    assert "older version, now 2" in printed(board)


def test_other_fields_of_one_version_are_no_older_version(board):
    board.evaluate("mae", 0.6)
    board.evaluate("mae", 0.5, fields={"epochs": 3})
    assert not any(column.older for table in tables(load(board.folder)) for column in table.columns)


# --- groups


def test_settings_that_differ_in_the_backbone_share_a_table_with_a_group_each(board):
    small = board.with_setting(backbone="vit_small_patch16")
    for here, base in ((board, 0.4), (small, 0.6)):
        here.evaluate("mae", base)
        here.evaluate("beit", base + 0.1)
    assert len(tables(load(board.folder))) == 2
    (table,) = tables(load(board.folder), Layout(group=("backbone",)))
    assert [(row.group, row.variant, row.cells[0].rank) for row in table.rows] == [
        ("vit_small_patch16", "beit", "1"),
        ("vit_small_patch16", "mae", "2"),
        ("vit_tiny_patch16", "beit", "1"),
        ("vit_tiny_patch16", "mae", "2"),
    ]
    assert "vit_small_patch16, vit_tiny_patch16" in table.label
    assert table.differs == ()


def test_paired_tests_stay_within_a_group(board):
    hits = {
        name: board.hits(value, 0, tilt=i)
        for i, (name, value) in enumerate({"mae": 0.7, "beit": 0.6, "ibot": 0.65, "tinymim": 0.5}.items())
    }
    for name, external in (
        ("mae", "none"),
        ("beit", "tokenizer"),
        ("ibot", "none"),
        ("tinymim", "tokenizer"),
    ):
        board.evaluate(name, hits=hits[name], external=external)
    table = only(board, group=("external",))
    assert [(row.group, row.variant) for row in table.rows] == [
        ("nothing but images", "mae"),
        ("nothing but images", "ibot"),
        ("with a tokenizer", "beit"),
        ("with a tokenizer", "tinymim"),
    ]
    raw = {row.variant: row.cells[0].p_above_raw for row in table.rows}
    assert raw["ibot"] == pytest.approx(stats.paired_p(hits["mae"][None], hits["ibot"][None]))
    assert raw["tinymim"] == pytest.approx(stats.paired_p(hits["beit"][None], hits["tinymim"][None]))
    assert pd.isna(raw["beit"])  # nobody above it in its group
    frame = mimbench.leaderboard(board.folder, group="external", format="")
    assert frame.group.tolist() == [row.group for row in table.rows]


def test_groups_stand_inside_each_other_and_older_versions_last_in_theirs(board):
    for backbone in ("vit_small_patch16", "vit_tiny_patch16"):
        here = board.with_setting(backbone=backbone)
        here.evaluate("beit", 0.9, external="tokenizer", method_version=1)
        here.evaluate("beit", 0.2, external="tokenizer", method_version=2, needs={"a" * 16: "2" * 64})
        here.evaluate("mae", 0.1)
    (table,) = tables(load(board.folder), make_layout(group="backbone,external"))
    assert [(body.heading, body.older, [row.variant for row in body.rows]) for body in table.bodies] == [
        ("vit_small_patch16 · nothing but images", False, ["mae"]),
        ("vit_small_patch16 · with a tokenizer", False, ["beit"]),
        ("", True, ["beit"]),
        ("vit_tiny_patch16 · nothing but images", False, ["mae"]),
        ("vit_tiny_patch16 · with a tokenizer", False, ["beit"]),
        ("", True, ["beit"]),
    ]
    assert [body.start for body in table.bodies] == list(range(6))


def test_groups_of_sizes_stand_in_the_order_of_numbers(board):
    for epochs in (100, 20, 3):
        board.with_setting(budget={"unit": "epochs", "amount": epochs}).evaluate("mae", 0.5)
    (table,) = tables(load(board.folder), make_layout(group="budget"))
    assert [row.group for row in table.rows] == ["3 epochs", "20 epochs", "100 epochs"]


def test_two_answers_in_one_group_still_stop_the_table(board):
    for needs in ("a", "b"):
        board.evaluate("mae", 0.6, needs={needs * 16: "1" * 64})
    board.with_setting(backbone="vit_small_patch16").evaluate("mae", 0.6)
    with pytest.raises(UserError, match="two records answer for mae"):
        tables(load(board.folder), Layout(group=("backbone",)))


@pytest.mark.browser
def test_a_group_keeps_its_heading_when_its_rows_are_sorted_and_filtered(board, browser):
    for i, (name, external) in enumerate((("mae", "none"), ("hpm", "none"), ("beit", "tokenizer"))):
        board.evaluate(name, 0.4 + i / 10, external=external, cost={**COST, "flops": 1e15 * (3 - i)})
    (path,) = write(board.folder, ("html",), layout=Layout(group=("external",)))
    opened = Watched(browser, path)
    shown = opened.page.locator("#table-1 table:not(.figures) tbody tr:visible th")

    def headed() -> list[str]:
        return [text.split("\n")[0].split("‡")[0].strip() for text in shown.all_inner_texts()]

    assert headed()[:3] == ["nothing but images", "hpm", "mae"]
    heading = opened.page.locator("#table-1 th[data-column]").filter(has_text=re.compile("^Compute")).first
    heading.locator("button").click()
    assert headed()[:3] == ["nothing but images", "mae", "hpm"]
    opened.page.fill("#filter-name", "beit")
    assert [name.split(" ")[0] for name in headed()] == ["with", "beit"]  # an empty group has no heading
    assert opened.page.locator("#shown").inner_text() == "1 of 3 rows"
    assert opened.complaints == []
    opened.page.close()


# --- folders


@pytest.fixture
def two(tmp_path) -> tuple[Board, Board]:
    return Board(tmp_path / "here"), Board(tmp_path / "there it is")


def test_records_of_several_folders_share_their_tables(two):
    two[0].evaluate("mae", 0.5)
    two[1].evaluate("beit", 0.6)
    (table,) = tables(load([board.folder for board in two]))
    assert names(table) == ["beit", "mae"]


def test_a_copy_of_a_record_counts_once(two):
    record = two[0].evaluate("mae", 0.5)
    records.write(two[1].folder, record)
    assert len(load([two[0].folder, two[1].folder])) == 1
    assert len(load([two[0].folder, two[0].folder])) == 1


def test_two_contents_of_one_job_stop_the_tables_and_name_both_files(two):
    one = two[0].evaluate("mae", 0.5)
    records.write(two[1].folder, one.model_copy(update={"metrics": {"top1": 0.7}}))
    with pytest.raises(UserError, match="different records of one job") as error:
        load([board.folder for board in two])
    for board in two:
        assert str(board.folder / "records" / f"{one.id}.json") in str(error.value)


def test_two_answers_in_two_folders_stop_the_table_and_name_both_files(two):
    one = two[0].evaluate("mae", 0.6, needs={"a" * 16: "1" * 64})
    other = two[1].evaluate("mae", 0.7, needs={"b" * 16: "2" * 64})
    with pytest.raises(UserError, match="two records answer") as error:
        tables(load([board.folder for board in two]))
    for board, record in zip(two, (one, other), strict=True):
        assert f"{board.folder.as_posix()}/records/{record.id}.json" in str(error.value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_failure_elsewhere_is_no_second_answer(two, order):
    failed = two[0].evaluate("mae", error="out of memory")
    records.write(two[1].folder, two[0].evaluate("mae", 0.6))
    records.write(two[0].folder, failed)
    (table,) = tables(load([two[i].folder for i in order]))
    assert table.rows[0].cells[0].value == pytest.approx(0.6)


def test_links_lead_to_the_folder_that_has_the_record(two, tmp_path):
    made = {two[0].evaluate("mae", 0.5).id: two[0], two[1].evaluate("beit", 0.6).id: two[1]}
    (page,) = write([board.folder for board in two], ("html",), out=tmp_path / "out")
    links = set(re.findall(r'href="([^"#]+\.json)"', page.read_text(encoding="utf-8")))
    assert len(links) == 2
    for link in links:
        path = (page.parent / link.replace("%20", " ")).resolve()
        assert path == made[path.stem].folder.resolve() / "records" / path.name
        assert json.loads(path.read_text())["id"] == path.stem


# --- the command


def test_command_and_function_take_the_same_options():
    command, function = (
        set(inspect.signature(taken).parameters) for taken in (command_of, mimbench.leaderboard)
    )
    assert command - {"folders"} == function - {"folder"}


def leaderboard(*arguments: str | Path):
    return CliRunner().invoke(app, ["leaderboard", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_draws_what_it_is_asked_for(two, tmp_path):
    two[0].evaluate("mae", 0.5, protocol="knn")
    for i, seed in enumerate((0, 1)):
        two[i].evaluate("mae", 0.5, seed)
        two[i].evaluate("beit", 0.7, seed, external="tokenizer", cost={**COST, "flops": 1e15})
    out = tmp_path / "out"
    folders = [board.folder for board in two]
    options = ["--by=linprobe", "--group=external", "--at=equal-flops", "--seeds=1", "--out", out]
    shown = leaderboard(*folders, *options, "--format=csv,html,latex,markdown", "--protocol=linprobe")
    assert shown.exit_code == 0, shown.output
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".html", ".md", ".tex"]
    for fact in ("equal FLOPs (at most 1.00 PFLOP)", "nothing but images", "with a tokenizer"):
        assert fact in shown.output
    frame = pd.read_csv(out / "leaderboard.csv")
    assert set(frame.protocol) == {"linprobe"}
    assert set(frame.n_seeds) <= {0, 1}


def test_of_several_folders_nothing_is_written_where_nobody_said(two):
    two[0].evaluate("mae", 0.5)
    two[1].evaluate("beit", 0.6)
    shown = leaderboard(*(board.folder for board in two))
    assert shown.exit_code == 0, shown.output
    assert "--out" in shown.output
    assert [path.name for board in two for path in board.folder.iterdir()] == ["records", "records"]
