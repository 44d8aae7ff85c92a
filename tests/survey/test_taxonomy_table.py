"""The taxonomy drawn: no method lost, none twice, and a hostile name stays text in every format."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from typer.testing import CliRunner

from mimbench import registry, taxonomy
from mimbench.cli import app
from mimbench.errors import UserError
from mimbench.survey import table
from mimbench.survey.table import Filed
from mimbench.survey.works import works
from mimbench.survey.write import written

HOSTILE = "=1+1|<script>alert(1)</script>{{7*7}}[red]$x^2$\\input"


def method(key: str, masking: str = "random", target: str = "pixels", **facts) -> Filed:
    known = {
        "name": key,
        "year": 2022,
        "arxiv": "",
        "modality": "image",
        "scheme": "reconstruction",
        "architecture": "plain transformer",
        "objective": "reconstruction",
        "contribution": "",
        "surveyed": False,
        "implemented": True,
    }
    return Filed(key=key, masking=masking, target=target, **{**known, **facts})


def zoo() -> set[str]:
    return {key for key, cls in registry.methods().items() if cls.card.role == "method"}


def test_every_method_of_the_zoo_stands_in_the_table_once():
    keys = [row.key for row in table.filed()]
    assert sorted(keys) == sorted(zoo())


def test_with_all_no_work_is_lost_and_none_stands_twice():
    rows = table.filed(everything=True)
    assert len({row.key for row in rows}) == len(rows)
    numbers = [row.arxiv for row in rows if row.arxiv]
    assert len(set(numbers)) == len(numbers)
    assert {work.arxiv for work in works() if work.arxiv} <= set(numbers)
    assert {row.key for row in rows if row.implemented} == zoo()
    assert all(row.label.endswith("*") != row.implemented for row in rows)


def test_a_method_of_several_classes_stands_in_each_of_their_cells_and_in_no_other():
    rows = [method("a", "random + network-guided", "pixels + hog"), method("b", "none", "hog")]
    grid = table.matrix(rows)
    found = {place: [row.key for row in cell] for place, cell in grid.cells.items()}
    assert found == {
        ("random", "pixels"): ["a"],
        ("random", "hog"): ["a"],
        ("network-guided", "pixels"): ["a"],
        ("network-guided", "hog"): ["a"],
        ("none", "hog"): ["b"],
    }
    assert "none" in grid.row_names
    assert "labels" not in grid.column_names, "an empty class that is not the survey's only takes room"
    turned = grid.upright()
    assert (turned.rows, turned.columns) == (taxonomy.TARGET, taxonomy.MASKING)
    assert turned.cell("hog", "none") == grid.cell("none", "hog")


def test_the_matrix_of_the_zoo_holds_each_method_as_often_as_it_has_classes():
    rows = table.filed(everything=True)
    grid = table.matrix(rows)
    expected = sum(len(row.masking.split(" + ")) * len(row.target.split(" + ")) for row in rows)
    assert sum(map(len, grid.cells.values())) == expected
    shown = [cell for r in grid.row_names for c in grid.column_names for cell in grid.cell(r, c)]
    assert len(shown) == expected, "a cell that is not drawn"


def test_a_plug_in_that_is_not_filed_is_listed_all_the_same():
    rows = [method("foreign", "", "")]
    assert table.matrix(rows).cells == {}
    assert "foreign" in written(rows, "table").decode()
    assert "| `foreign` foreign | 2022 | reconstruction | – | – |" in written(rows, "markdown").decode()


@pytest.mark.parametrize("by", ["masking", "masking,masking", "masking,target,scheme", "masking,colour", ""])
def test_a_matrix_of_anything_but_two_criteria_is_refused(by):
    with pytest.raises(UserError, match="criteri"):
        table.matrix([], by)


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def test_a_hostile_name_stays_text_in_every_format():
    rows = [method(HOSTILE, about=HOSTILE, arxiv='2222.1" onload="x')]
    page = written(rows, "html").decode()
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert not {name for name in parsed.attributes if name.startswith("on") or name == "style"}
    assert HOSTILE in parsed.text
    (cells,) = list(csv.DictReader(io.StringIO(written(rows, "csv").decode("utf-8-sig"))))
    assert cells["key"] == "'" + HOSTILE, "a spreadsheet would run it"
    line = next(line for line in written(rows, "markdown").decode().splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 2 + 8 - 1
    assert "<script" not in line.split("`")[2]
    assert "[red]" in "".join(written(rows, "table").decode().split())
    Image.open(io.BytesIO(written(rows, "png"))).verify()


def test_the_csv_can_be_read_back_into_the_same_classes():
    rows = table.filed(everything=True)
    read = list(csv.DictReader(io.StringIO(written(rows, "csv").decode("utf-8-sig"))))
    assert [(r["key"], r["target"], r["implemented"]) for r in read] == [
        (row.key, row.target, "yes" if row.implemented else "no") for row in rows
    ]


def test_the_picture_grows_with_what_it_holds_and_is_the_same_twice():
    few, many = written([method("a")], "png"), written(table.filed(everything=True), "png")
    sizes = [Image.open(io.BytesIO(picture)).size for picture in (few, many)]
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] > sizes[0][1]
    assert written([method("a")], "png") == few


def test_the_command_prints_tables_and_writes_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    printed = run(app, ["taxonomy", "--all", "--format", "csv"])
    assert printed.exit_code == 0
    assert printed.stdout.startswith("key,name,year")
    assert len(printed.stdout.splitlines()) == 1 + len(table.filed(everything=True))
    drawn = run(app, ["taxonomy", "--format", "html", "--by", "scheme,objective", "--out", "new/page.html"])
    assert drawn.exit_code == 0, drawn.output
    assert "Scheme by objective" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert run(app, ["taxonomy", "--format", "pdf"]).exit_code == 2
