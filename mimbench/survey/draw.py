"""The taxonomy on the console and as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from io import BytesIO

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench import taxonomy
from mimbench.survey.table import ABSENT, Filed, Matrix, count, matrix

LINE = 0.17  # inches of a line of text in the picture
LETTER = 0.078  # inches of a letter


def console(rows: Sequence[Filed], by: str = "masking,target") -> RenderableType:
    """The table of methods, the matrix of the criteria in ``by``, and what the words mean."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=count(rows), title_justify="left")
    names = ("method", "year", "scheme", "masking", "target", "objective")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in ("method", "year"))
    for row in rows:
        facts = (row.scheme, row.masking, row.target, row.objective)
        style = "bold" if row.implemented else "dim"
        table.add_row(Text(row.label, style=style), str(row.year), *(Text(fact or "–") for fact in facts))
    grid = matrix(rows, by)
    return Group(table, _crossed(grid.upright()), Text(), _meanings(grid), Text(_note(rows), style="dim"))


def _note(rows: Sequence[Filed]) -> str:
    note = f"Classes of the survey {taxonomy.SURVEY}; a method of several classes stands in several cells."
    if any(not row.implemented for row in rows):
        return f"{note} {ABSENT} behind a name: not in mimbench."
    return note + " --all adds the works that mimbench does not implement."


def _crossed(grid: Matrix) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False)
    table.add_column(f"{grid.rows.name} \\ {grid.columns.name}", style="bold")
    for name in grid.column_names:
        table.add_column(name, overflow="fold")
    for name in grid.row_names:
        cells = (grid.cell(name, column) for column in grid.column_names)
        table.add_row(name, *(Text(_names(cell) or "–") for cell in cells))
    return table


def _meanings(grid: Matrix) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for criterion, names in ((grid.rows, grid.row_names), (grid.columns, grid.column_names)):
        table.add_row(criterion.name, Text(criterion.question, style="italic"))
        for known in criterion.classes:
            if known.name in names:
                table.add_row(f"  {known.name}", Text(f"{known.meaning} ({known.source})"))
    return table


def picture(rows: Sequence[Filed], by: str = "masking,target") -> bytes:
    """The matrix as a PNG: a cell is the darker the more methods it holds; names the zoo lacks are grey."""
    grid = matrix(rows, by)
    columns = [len(name) for name in grid.column_names]
    letters = [max(8, size) for size in columns]
    for at, column in enumerate(grid.column_names):
        longest = max((len(_names(grid.cell(row, column))) for row in grid.row_names), default=0)
        widest = max((len(r.label) + 1 for row in grid.row_names for r in grid.cell(row, column)), default=0)
        letters[at] = max(letters[at], widest, math.ceil(1.9 * math.sqrt(longest)))
    wrapped = {
        (row, column): _parts(grid.cell(row, column), letters[at])
        for row in grid.row_names
        for at, column in enumerate(grid.column_names)
    }
    heights = [
        LINE * (1.2 + max(1, *(len(a) + len(b) for a, b in (wrapped[row, c] for c in grid.column_names))))
        for row in grid.row_names
    ]
    widths = [LETTER * (size + 2) for size in letters]
    left = LETTER * (4 + max(len(name) for name in (*grid.row_names, grid.rows.name)))
    top, bottom = 4.2 * LINE, 3.5 * LINE
    width, height = left + sum(widths) + 0.2, top + sum(heights) + bottom
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def write(x: float, y: float, text: str, **more: object) -> None:
        axes.text(x, y, text, va="top", parse_math=False, **{"fontsize": 9, "color": "#1b2027", **more})  # type: ignore[arg-type]

    write(0.1, 0.4 * LINE, f"{grid.rows.name} by {grid.columns.name}: {count(rows)}", fontsize=11)
    most = max((len(cell) for cell in grid.cells.values()), default=1)
    x = left
    for column, wide in zip(grid.column_names, widths, strict=True):
        write(x + LETTER, 2.6 * LINE, column, weight="bold")
        x += wide
    y = top
    for row, high in zip(grid.row_names, heights, strict=True):
        write(0.1, y + 0.5 * LINE, row, weight="bold")
        x = left
        for column, wide in zip(grid.column_names, widths, strict=True):
            depth = 0.4 * math.sqrt(len(grid.cell(row, column)) / most)
            axes.add_patch(Rectangle((x, y), wide, high, fc=(0.04, 0.35, 0.8, depth), ec="#d3dae1"))
            ours, others = wrapped[row, column]
            write(x + LETTER, y + 0.5 * LINE, "\n".join(ours), linespacing=1.3)
            write(
                x + LETTER, y + (0.5 + len(ours)) * LINE, "\n".join(others), linespacing=1.3, color="#57606a"
            )
            x += wide
        y += high
    for number, line in enumerate(textwrap.wrap(_note(rows), max(30, int(width / 0.07)))):
        write(0.1, y + (0.6 + number) * LINE, line, fontsize=8, color="#57606a")
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _names(cell: Sequence[Filed]) -> str:
    return ", ".join(row.label for row in cell)


def _parts(cell: Sequence[Filed], letters: int) -> tuple[list[str], list[str]]:
    """The names in a cell in lines of ``letters``: those of the zoo, and the others."""
    ours, others = (_names([row for row in cell if row.implemented is there]) for there in (True, False))
    return textwrap.wrap(ours, letters), textwrap.wrap(others, letters)
