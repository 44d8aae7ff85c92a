"""Leaderboards out of records: what may stand side by side, what must not, and what is missing.

``load`` gives one row a record, ``tables`` what people compare, ``summary`` the same numbers as one tidy
DataFrame, ``write`` the files. Imports no torch. The rules a table keeps:

- Its rows share the setting, and each column one protocol, version, set of fields and test data. Other
  recipes ("linprobe:mae") and other test data are columns beside it; other versions and other fields go
  to a table of their own, whose heading names the difference.
- Settings that differ in what rows are grouped by share a table, with a group each; at an equal cost, those
  that differ in the budget. Ranks and paired tests stay within a group.
- Two answers for one cell, or two sets of weights behind one row and seed, stop it and name both files.
- A number is a mean over all seeds of its table, or a hole that says why. No mean skips a hole.
- An older version of a method stays apart and unranked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from mimbench import records
from mimbench.errors import UserError, unknown
from mimbench.files import make_folder, write_atomically
from mimbench.report.build import build
from mimbench.report.conflicts import refuse_two_contents
from mimbench.report.entries import entry
from mimbench.report.layout import Layout, make_layout
from mimbench.report.sheet import csv_text, summary
from mimbench.report.tables import Cell, Column, Row, Table

if TYPE_CHECKING:
    from rich.console import Group

__all__ = [
    "FORMATS",
    "Cell",
    "Column",
    "Layout",
    "Row",
    "Table",
    "console_tables",
    "draw",
    "load",
    "make_layout",
    "save",
    "summary",
    "tables",
    "write",
]

Folders = Path | str | Sequence[Path | str]
EVERYTHING = Layout()


def _csv(found: Sequence[Table], *_: object) -> str:
    return csv_text(summary(found))


def _html(found: Sequence[Table], folders: Sequence[Path], out: Path) -> str:
    from mimbench.report import page

    return page.html(found, folders, out)


def _latex(found: Sequence[Table], *_: object) -> str:
    from mimbench.report.latex import latex

    return latex(found)


def _markdown(found: Sequence[Table], *_: object) -> str:
    from mimbench.report.markdown import markdown

    return markdown(found)


# Draws tables; the others are the results folders and the folder to write to.
Draw = Callable[[Sequence[Table], Sequence[Path], Path], str]
FORMATS: Mapping[str, tuple[str, Draw]] = {  # each with the ending of its file
    "csv": ("csv", _csv),
    "html": ("html", _html),
    "latex": ("tex", _latex),
    "markdown": ("md", _markdown),
}


def load(folders: Folders) -> pd.DataFrame:
    """One row a record below one or several results folders: what was asked, what came out, what it cost.

    ``settings``, ``setting``, ``fields`` and ``needs`` are canonical JSON; costs are columns called
    ``cost_<key>`` as in ``report.costs.COSTS``; ``file`` is where the record lies. A record that lies in
    several folders counts once. Raises UserError where there are no records, for one that is damaged or
    newer than this version, and where two folders have different records of one job.
    """
    found: dict[str, tuple[Path, records.Record]] = {}
    for folder in _each(folders):
        for path, record in records.read_files(folder):
            found[record.id] = refuse_two_contents(found.get(record.id), (path, record))
    if not found:
        listed = " and ".join(map(str, _each(folders)))
        raise UserError(f"no records below {listed}; mimbench run writes them there")
    return pd.DataFrame([entry(record, path.as_posix()) for path, record in found.values()])


def _each(folders: Folders) -> list[Path]:
    given = [folders] if isinstance(folders, (str, Path)) else folders
    return list(dict.fromkeys(map(Path, given)))


def tables(frame: pd.DataFrame, layout: Layout = EVERYTHING) -> list[Table]:
    """What people compare: one table a setting, and one more for each further definition of a protocol.

    frame: from ``load``. Columns stand in the order that ``layout`` asks for, others in the order in which
    they were first evaluated; the first that ranks sorts the rows. Raises UserError when two records answer
    for one cell, a record contradicts itself or the layout names what there is not.
    """
    return build(frame, layout)


def console_tables(found: Sequence[Table], width: int = 100) -> list[Group]:
    """``tables`` for ``rich`` to print on ``width`` columns, each with its heading and legend."""
    from mimbench.report.console import draw

    return [draw(table, width) for table in found]


def check_formats(names: Sequence[str]) -> None:
    """Raise UserError for a format that there is not."""
    for name in names:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)


def write(
    folders: Folders,
    formats: Sequence[str] = ("csv", "html"),
    out: Path | str | None = None,
    layout: Layout = EVERYTHING,
) -> list[Path]:
    """Write the tables of results folders as ``leaderboard.<ending>`` in each format; their paths.

    out: the folder to write to, by default the first results folder; links in the page lead from there to
    the records. Raises UserError as ``load`` and ``tables`` do, and where ``out`` cannot be written.
    """
    check_formats(formats)
    return save(tables(load(folders), layout), folders, formats, out)


def save(
    found: Sequence[Table],
    folders: Folders,
    formats: Sequence[str] = ("csv", "html"),
    out: Path | str | None = None,
) -> list[Path]:
    """``write`` for tables that are there already."""
    check_formats(formats)
    given = _each(folders)
    target = make_folder(Path(out) if out is not None else given[0])
    paths = []
    for name in dict.fromkeys(formats):
        ending, draw = FORMATS[name]
        path = target / f"leaderboard.{ending}"
        write_atomically(path, partial(_write_text, draw(found, given, target)))
        paths.append(path)
    return paths


def draw(
    folders: Folders, format: str | Sequence[str], out: Path | str | None, **layout: Any
) -> tuple[list[Table], list[Path]]:
    """The tables of results folders, and the files that they were written to.

    format: names with commas between them, or a list. layout: of ``make_layout``. Tables of several folders
    are written where ``out`` says, or not at all. Raises UserError as ``load`` and ``tables`` do.
    """
    names = format.split(",") if isinstance(format, str) else format
    formats = [name for name in map(str.strip, names) if name]
    check_formats(formats)
    chosen = make_layout(**layout)
    found = tables(load(folders), chosen)
    anywhere = out is not None or len(_each(folders)) == 1
    return found, save(found, folders, formats if anywhere else (), out)


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode("utf-8"))
