"""Leaderboards out of records: what may stand side by side, what must not, and what is missing.

``load`` gives one row a record, ``tables`` what people compare, ``summary`` the same numbers as one tidy
DataFrame, ``write`` the CSV and HTML files. Imports no torch. The rules a table keeps:

- Its rows share the setting, and each column one protocol, version, set of fields and test data. Other
  recipes ("linprobe:mae") and other test data are columns beside it; other versions and other fields go
  to a table of their own, whose heading names the difference.
- Two answers for one cell, or two sets of weights behind one row and seed, stop it and name both files.
- A number is a mean over all seeds of its table, or a hole that says why. No mean skips a hole.
- An older version of a method stays apart and unranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import pandas as pd

from mimbench import records
from mimbench.errors import UserError
from mimbench.files import make_folder, write_atomically
from mimbench.report.build import build
from mimbench.report.entries import entry
from mimbench.report.sheet import csv_text, summary
from mimbench.report.tables import Cell, Column, Row, Table

if TYPE_CHECKING:
    from rich.console import Group

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "console_tables",
    "load",
    "summary",
    "tables",
    "write",
]

Format = Literal["csv", "html"]


def load(folder: Path | str) -> pd.DataFrame:
    """One row a record below a results folder: what was asked, what came out and what it cost.

    ``settings``, ``setting``, ``fields`` and ``needs`` are canonical JSON; costs are columns called
    ``cost_<key>`` as in ``report.costs.COSTS``. Raises UserError where there are no records, and for
    one that is damaged or newer than this version.
    """
    found = records.read_folder(Path(folder))
    if not found:
        raise UserError(f"no records below {folder}; mimbench run writes them there")
    return pd.DataFrame([entry(record) for record in found])


def tables(
    frame: pd.DataFrame, *, seeds: Iterable[int] | None = None, protocols: Sequence[str] = ()
) -> list[Table]:
    """What people compare: one table a setting, and one more for each further definition of a protocol.

    frame: from ``load``. seeds: only these; by default all there are. protocols: keys whose columns come
    first, in this order, before others in the order in which they were first evaluated; the first column
    sorts the rows. Raises UserError when two records answer for one cell or a record contradicts itself.
    """
    if seeds is not None:
        frame = frame[frame["seed"].isin(list(seeds))]
    return build(frame, protocols)


def console_tables(
    frame: pd.DataFrame,
    *,
    width: int = 100,
    seeds: Iterable[int] | None = None,
    protocols: Sequence[str] = (),
) -> list[Group]:
    """The ``tables`` for ``rich`` to print on ``width`` columns, each with its heading and legend."""
    from mimbench.report.console import draw

    return [draw(table, width) for table in tables(frame, seeds=seeds, protocols=protocols)]


def write(
    folder: Path | str,
    formats: Sequence[Format] = ("csv", "html"),
    out: Path | str | None = None,
    *,
    seeds: Iterable[int] | None = None,
    protocols: Sequence[str] = (),
) -> list[Path]:
    """Write ``leaderboard.csv`` and ``leaderboard.html`` of a results folder; their paths.

    out: the folder to write to, by default the results folder itself; links in the page lead from there
    to the records. Raises UserError as ``load`` and ``tables`` do, and where ``out`` cannot be written.
    """
    from mimbench.report import page

    folder = Path(folder)
    found = tables(load(folder), seeds=seeds, protocols=protocols)
    target = make_folder(Path(out) if out is not None else folder)
    paths = []
    for name in formats:
        path = target / f"leaderboard.{name}"
        text = csv_text(summary(found)) if name == "csv" else page.html(found, folder, target)
        write_atomically(path, partial(_write_text, text))
        paths.append(path)
    return paths


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode("utf-8"))
