"""What ``verify`` and ``compare`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimbench.console import duration
from mimbench.errors import unknown
from mimbench.repro.compare import Boards, Comparison
from mimbench.repro.differences import MEANING, QUESTION, Difference, of_kinds, shown
from mimbench.repro.verdict import Verification, chance, score
from mimbench.spec import Frozen

STYLES = {"same": "green", "within interval": "green", "different": "red"}
Format = Literal["text", "json"]
FORMATS = ("text", "json")


def check_format(name: str) -> None:
    """Raise UserError for a format that is none."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)


def show_json(found: Frozen, console: Console) -> None:
    """The whole answer as one JSON object, unbroken and uncoloured."""
    console.file.write(found.model_dump_json(indent=1) + "\n")


def show_verification(found: Verification, console: Console) -> None:
    """The answer first, then why, then in what the surroundings differ."""
    console.print(Text(found.name, style="bold"), soft_wrap=True)
    console.print(Text(found.answer, style=STYLES[found.answer]))
    for sentence in found.sentences:
        console.print(Text(f"  {sentence}"), soft_wrap=True)
    if found.repeated:
        if found.differences:
            first = found.first_difference
            console.print(Text(f"  first difference between then and now: {first}"), soft_wrap=True)
        else:
            console.print("  nothing recorded differs between then and now")
        _show_differences(found.differences, ("then", "now"), console)
        console.print(f"repeated in {duration(found.seconds)}", highlight=False)
    if found.folder:
        console.print(Text(f"kept in {found.folder}"), soft_wrap=True)


def show_comparison(found: Comparison, console: Console) -> None:
    """The verdict first, then everything that differs."""
    for side, letter in ((found.a, "A"), (found.b, "B")):
        console.print(Text(f"{letter}  {side.name}  {side.file}", style="bold"), soft_wrap=True)
    for sentence in found.verdict:
        console.print(Text(f"  {sentence}"), soft_wrap=True)
    if found.differences:
        _show_differences(found.differences, ("A", "B"), console)
    else:
        console.print("nothing recorded differs")


def show_boards(found: Boards, console: Console) -> None:
    """Row by row: the gap, its p-value and the verdict."""
    console.print(Text(f"A  {found.a}\nB  {found.b}", style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("row", "A", "B", "A − B", "p", "what differs"):
        numbers = name not in ("row", "what differs")
        table.add_column(name, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for row in found.rows:
        if row.gap is None:
            cells = ["", "", "", ""]
        else:
            gap, points = row.gap, 100 if row.gap.unit == "share" else 1
            p = chance(gap.p).removeprefix("p ").removeprefix("= ")
            cells = [score(gap.a, gap.unit), score(gap.b, gap.unit), f"{points * gap.difference:+.3g}", p]
        table.add_row(Text(row.row), *map(Text, cells), Text(_what(row)))
    if found.rows:
        console.print(table)
    alike = sum(row.equal for row in found.rows)
    console.print(f"{len(found.rows)} rows in both, {alike} of them equal bit for bit", highlight=False)
    for letter, names in (("A", found.only_a), ("B", found.only_b)):
        for name in names:
            console.print(Text(f"only in {letter}: {name}"), soft_wrap=True)


def _what(row: Comparison) -> str:
    problems = [*row.a.problems, *row.b.problems]
    if row.equal and not (problems or of_kinds(list(row.differences), QUESTION)):
        return "nothing, bit for bit"
    return problems[0] if problems else "; ".join(row.verdict[1:2] if row.gap else row.verdict[:1])


def _show_differences(found: Sequence[Difference], heads: tuple[str, str], console: Console) -> None:
    if not found:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "what differs", *heads):
        table.add_column(name, overflow="fold")
    before = ""
    for difference in found:
        table.add_row(
            Text(difference.kind if difference.kind != before else "", style="bold"),
            Text(difference.name),
            Text(shown(difference.a)),
            Text(shown(difference.b)),
        )
        before = difference.kind
    console.print(table)
    for kind in dict.fromkeys(difference.kind for difference in found):
        console.print(Text(f"{kind}: {MEANING[kind]}", style="dim"), soft_wrap=True)
