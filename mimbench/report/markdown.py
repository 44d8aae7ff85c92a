"""The leaderboard as Markdown, with the tables that GitHub, GitLab and most wikis draw.

Every text is escaped, so that a name stays a name: GitHub Flavored Markdown, 2.4 (any ASCII punctuation may
follow a backslash) and 4.10 (a pipe ends a cell wherever it stands, unless escaped).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from mimbench.report.costs import BY_KEY, SPENT
from mimbench.report.legend import EDGE, FLAG, differences, remarks, signs
from mimbench.report.tables import Row, Table
from mimbench.report.text import HOLE, number

SHOWN = ("hours", "images_per_second", "pflops", "encoder_gflops")
# What starts emphasis, code, links, HTML, entities, headings, lists, tables or GitHub's own links.
SPECIAL = re.compile(r"[\\`*_\[\]<>|~&#$@]|(?<=www)\.|:(?=//)|^[-+=]")
NUMBERED = re.compile(r"^(\d+)([.)])")


def markdown(found: Sequence[Table]) -> str:
    """All tables, each with its heading and legend."""
    return "# Leaderboard\n\n" + "\n".join(_table(table) for table in found)


def _table(table: Table) -> str:
    wanted = ([SPENT.key] if table.level else []) + [key for key in SHOWN if _measured(table, key)]
    costs = [(key, *BY_KEY[key].unit(row.cost[key] for row in table.rows)) for key in wanted]
    heads = ["Method"]
    heads += [_lines([c.label, *c.remarks, c.heading]) for c in table.columns]
    heads += [_lines([BY_KEY[key].title, unit]) for key, _, unit in costs]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for body in table.bodies:
        if body.heading:
            lines.append(_line([f"**{escape(body.heading)}**", *[""] * (len(heads) - 1)]))
        for row in body.rows:
            cells = [_name(table, row), *(_cell(table, row, place) for place in range(len(table.columns)))]
            cells += [number(factor * row.cost[key]) for key, factor, _ in costs]
            lines.append(_line(f"*{cell}*" if body.older and cell else cell for cell in cells))
    told = [sentence for sentence in [differences(table)] if sentence]
    below = [*signs(table), *remarks(table)]
    return "\n".join(
        [
            f"## {escape(table.label)}\n",
            *(f"{escape(sentence)}\n" for sentence in told),
            *lines,
            "",
            *(f"- {escape(sentence)}" for sentence in below),
            "",
        ]
    )


def _measured(table: Table, key: str) -> bool:
    return any(row.cost[key] > 0 for row in table.rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(parts: Iterable[str]) -> str:
    return "<br>".join(map(escape, parts))


def _name(table: Table, row: Row) -> str:
    flag = FLAG if table.row_flags(row) else ""
    marks = table.marks(row)
    return escape(row.variant) + flag + (f" ({escape(', '.join(marks))})" if marks else "")


def _cell(table: Table, row: Row, place: int) -> str:
    cell, column = row.cells[place], table.columns[place]
    if cell.state != "value":
        return f"{HOLE} {escape(cell.reason)}"
    value = column.shown(cell.value)
    parts = [cell.rank] if cell.rank else []
    parts.append(f"**{value}**" if table.is_best(row, place) else value)
    parts[-1] += (EDGE if cell.edges else "") + (FLAG if table.cell_flags(row, place) else "")
    if len(cell.seeds) > 1:
        parts.append(f"±{column.shown(cell.spread)}")
    if not math.isnan(cell.low):
        parts.append(escape(f"[{column.shown(cell.low)}, {column.shown(cell.high)}]"))
    return " ".join(parts)


def escape(text: str) -> str:
    """``text`` as it is read, on one line, whatever it holds."""
    return NUMBERED.sub(r"\1\\\2", SPECIAL.sub(r"\\\g<0>", one_line(text)))


def one_line(text: str) -> str:
    """``text`` without line ends, and without characters that are not seen or turn others round."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
