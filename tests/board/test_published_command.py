"""``mimbench published``: every number with its source, in every format, whatever the names."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mimbench.cli import app
from mimbench.published import Figure, find, load
from mimbench.published.tell import told

EVIL = "=cmd|' /C calc'!A0 | <script>alert(1)</script> [x](javascript:1) `a` \x1b[31m\r\n{{ 7 * 7 }}"


def invoke(*options: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["published", *options], env={"COLUMNS": "400"})
    return ended.exit_code, ended.output


def evil() -> Figure:
    return Figure.model_validate(
        {
            "method": EVIL,
            "key": "mae",
            "backbone": EVIL,
            "evaluated_on": "ImageNet-1K",
            "protocol": EVIL,
            "metric": "top1",
            "value": 50,
            "source": EVIL,
            "url": "https://x.org/a)|<b>",
        }
    )


def test_the_table_has_every_figure_that_was_asked_for_with_its_source():
    status, printed = invoke("--methods", "beit,mae", "--protocol", "linprobe:mae")
    wanted = find(load(), methods=["beit", "mae"], protocol="linprobe:mae")
    assert status == 0
    assert f"{len(wanted)} published figures" in printed
    lines = printed.splitlines()
    for figure in wanted:
        assert any(f" {figure.value:g} " in line and figure.source in line for line in lines), figure


def test_csv_is_what_the_option_file_reads(tmp_path):
    status, printed = invoke("--methods", "mae", "--format", "csv")
    path = tmp_path / "own.csv"
    path.write_text(printed, encoding="utf-8", newline="")
    assert status == 0
    assert invoke("--file", str(path), "--format", "csv") == (0, printed)
    assert list(load(path)) == find(load(), methods=["mae"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--methods", "maee"), "did you mean mae"),
        (("--protocol", "linprob"), "did you mean linprobe"),
        (("--metric", "top2"), "did you mean top1"),
        (("--format", "xml"), "no format is called 'xml'"),
        (("--file", "nowhere.csv"), "check the path"),
    ],
)
def test_a_mistake_is_one_sentence(options, said):
    status, printed = invoke(*options)
    assert status == 2
    assert printed.startswith("error: ")
    assert said in printed
    assert printed.count("\n") == 1


def test_hostile_names_stay_text_in_every_format():
    console = Console(width=400)
    with console.capture() as capture:
        console.print(told([evil()], "table"))
    assert "\x1b" not in capture.get()
    assert "[x](javascript:1)" in capture.get()  # no markup of rich

    sheet = told([evil()], "csv")
    assert isinstance(sheet, str)
    cells = [cell for row in csv.reader(io.StringIO(sheet.lstrip("\ufeff"))) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]

    table = told([evil()], "markdown")
    assert isinstance(table, str)
    lines = table.splitlines()
    assert len(lines) == 3
    cells_of = lines[2].replace("\\|", "").count("|")
    assert cells_of == lines[0].count("|")
    assert "<script>" not in table.replace("\\<", "")
    assert "](javascript" not in table.replace("\\]", "")
    assert "(<https://x.org/a)%7C%3Cb%3E>)" in table


def test_an_unknown_format_is_refused():
    with pytest.raises(LookupError, match="did you mean markdown"):
        told([evil()], "markdwn")
