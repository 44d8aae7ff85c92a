r"""The leaderboard as LaTeX: one ``table`` each, to be read by ``\input`` into a paper.

Rows of booktabs, floor and ceiling below a rule. Every text is escaped, so that a name stays a name; what
LaTeX has no sign for is written as its code point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pylatexenc.latexencode import UnicodeToLatexEncoder

from mimbench.report.costs import BY_KEY, SPENT
from mimbench.report.legend import EDGE, FLAG, TIE, differences, remarks, signs
from mimbench.report.markdown import one_line
from mimbench.report.tables import Body, Row, Table
from mimbench.report.text import number

SHOWN = ("hours", "pflops", "encoder_gflops")
HEAD = "% Written by mimbench leaderboard. The preamble needs \\usepackage{booktabs,xcolor,adjustbox}\n"
# Left alone by the encoder, yet not what they seem: signs of their own, and those that join when doubled.
OWN = {"`": r"{\textasciigrave}", "|": r"{\textbar}"}
JOINING = "-,'"
ENCODER = UnicodeToLatexEncoder(
    unknown_char_policy=lambda character: rf"{{\texttt{{U+{ord(character):04X}}}}}",
    replacement_latex_protection="braces-all",
)


def latex(found: Sequence[Table]) -> str:
    """All tables."""
    return HEAD + "\n".join(_Drawing(table, number).text for number, table in enumerate(found, start=1))


def escape(text: str) -> str:
    """``text`` as it is read, on one line, whatever it holds."""
    found, before = [], ""
    for character in one_line(text):
        found.append("{}" if character == before and character in JOINING else "")
        found.append(OWN.get(character) or ENCODER.unicode_to_latex(character))
        before = character
    return "".join(found)


class _Drawing:
    """One table and the notes that its holes lead to."""

    def __init__(self, table: Table, number: int):
        self.table = table
        self.notes: dict[str, str] = {}  # reason of a hole -> letter
        wanted = ([SPENT.key] if table.level else []) + [
            key for key in SHOWN if any(row.cost[key] > 0 for row in table.rows)
        ]
        self.costs = [(key, *BY_KEY[key].unit(row.cost[key] for row in table.rows)) for key in wanted]
        self.width = 1 + len(table.columns) + len(self.costs)
        bodies = "\n\\midrule\n".join(map(self._body, table.bodies))
        self.text = "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{self._caption()}}}",
                rf"\label{{tab:mimbench-{number}}}",
                r"\begin{adjustbox}{max width=\linewidth}",
                rf"\begin{{tabular}}{{l{'r' * (self.width - 1)}}}",
                r"\toprule",
                self._head(),
                r"\midrule",
                bodies,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{adjustbox}",
                *self._below(),
                r"\end{table}",
                "",
            ]
        )

    def _caption(self) -> str:
        sentences = [self.table.label, differences(self.table), *signs(self.table)]
        bold = r" \textbf{Bold}: the best" + (
            " of its group." if any(row.group for row in self.table.rows) else "."
        )
        return ". ".join(escape(sentence) for sentence in sentences if sentence) + "." + bold

    def _head(self) -> str:
        """Label, remarks and metric of each column, below each other."""
        stacks = [["Method"]]
        stacks += [[column.label, *column.remarks, column.heading] for column in self.table.columns]
        stacks += [[BY_KEY[key].title, unit] for key, _, unit in self.costs]
        height = max(map(len, stacks))
        filled = [[*stack, *[""] * (height - len(stack))] for stack in stacks]
        return "\n".join(_line(map(escape, cells)) for cells in zip(*filled, strict=True))

    def _body(self, body: Body) -> str:
        """Methods, and below a rule what is only there to compare with."""
        methods = [self._row(row, body.older) for row in body.rows if row.role == "method"]
        others = [self._row(row, body.older) for row in body.rows if row.role != "method"]
        rule = [r"\midrule"] if methods and others else []
        heading = [rf"\multicolumn{{{self.width}}}{{l}}{{\textit{{{escape(body.heading)}}}}} \\"]
        return "\n".join([*(heading if body.heading else []), *methods, *rule, *others])

    def _row(self, row: Row, older: bool) -> str:
        cells = [self._name(row), *(self._cell(row, place) for place in range(len(self.table.columns)))]
        cells += [escape(number(factor * row.cost[key])) for key, factor, _ in self.costs]
        return _line(rf"\textcolor{{gray}}{{{cell}}}" if older else cell for cell in cells)

    def _name(self, row: Row) -> str:
        flag = FLAG if self.table.row_flags(row) else ""
        marks = self.table.marks(row)
        beside = rf" {{\footnotesize ({escape(', '.join(marks))})}}" if marks else ""
        return f"{{{escape(row.variant + flag)}}}{beside}"

    def _cell(self, row: Row, place: int) -> str:
        cell, column = row.cells[place], self.table.columns[place]
        if cell.state != "value":
            letter = self.notes.setdefault(cell.reason, _letters(len(self.notes)))
            return rf"\textendash\textsuperscript{{{letter}}}"
        shown = escape(column.shown(cell.value))
        shown = rf"\textbf{{{shown}}}" if self.table.is_best(row, place) else shown
        above = TIE if cell.rank == f"1{TIE}" else ""
        above += (EDGE if cell.edges else "") + (FLAG if self.table.cell_flags(row, place) else "")
        shown += rf"\textsuperscript{{{escape(above)}}}" if above else ""
        if len(cell.seeds) > 1:
            shown += rf" $\pm$ {escape(column.shown(cell.spread))}"
        if not math.isnan(cell.low):
            interval = f"[{column.shown(cell.low)}, {column.shown(cell.high)}]"
            shown += rf" {{\scriptsize {escape(interval)}}}"
        return shown

    def _below(self) -> list[str]:
        """The reasons of holes, and what to know about the numbers."""
        notes = [rf"\textsuperscript{{{letter}}} {escape(reason)}" for reason, letter in self.notes.items()]
        notes += [escape(sentence) for sentence in remarks(self.table)]
        if not notes:
            return []
        return [
            "",
            r"\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            "\\par\n".join(notes),
            r"\end{minipage}",
        ]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _letters(number: int) -> str:
    """a, b, …, z, aa, ab, …"""
    before, last = divmod(number, 26)
    return (_letters(before - 1) if before else "") + "abcdefghijklmnopqrstuvwxyz"[last]
