"""Methods by the survey's criteria: one row a method, and a matrix of two criteria with the methods in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mimbench import registry, taxonomy
from mimbench.errors import UserError, unknown
from mimbench.survey.works import Work, works

ABSENT = "*"  # behind the key of a method that the zoo does not have
CROSSED = ("scheme", "masking", "target", "architecture", "objective", "contribution")


@dataclass(frozen=True)
class Filed:
    """A method and its classes, "" where it is not filed. ``about``: a card's own, more precise words."""

    key: str
    name: str
    year: int
    arxiv: str
    modality: str
    scheme: str
    masking: str
    target: str
    architecture: str
    objective: str
    contribution: str
    surveyed: bool
    implemented: bool
    about: str = ""

    @property
    def label(self) -> str:
        """Its key, with a star where the zoo does not have it."""
        return self.key if self.implemented else self.key + ABSENT

    def classes(self, criterion: str) -> tuple[str, ...]:
        """Its classes under ``criterion``, () if it is not filed."""
        text = str(getattr(self, criterion))
        return taxonomy.CRITERIA[criterion].split(text) if text else ()


def filed(everything: bool = False) -> list[Filed]:
    """The methods of the zoo and of plug-ins, oldest first; with ``everything`` all other works too.

    A work is the zoo's if their arXiv numbers agree. Baselines and tokenizers are no methods.
    """
    by_number = {work.arxiv: work for work in works() if work.arxiv}
    rows = []
    for key, cls in registry.methods().items():
        card = cls.card
        if card.role != "method":
            continue
        work = by_number.get(card.arxiv)
        words = card.classes.model_dump() if card.classes else {}
        rows.append(
            Filed(
                key=key,
                name=card.name,
                year=card.year or 0,
                arxiv=card.arxiv,
                modality=work.modality if work else "image",
                scheme=card.scheme,
                masking=words.get("masking", ""),
                target=words.get("target", ""),
                architecture=words.get("architecture", ""),
                objective=words.get("objective", ""),
                contribution=work.contribution if work else "",
                surveyed=work.surveyed if work else False,
                implemented=True,
                about="; ".join((card.masking, card.target, card.architecture, card.objective)),
            )
        )
    if everything:
        numbers, keys = {row.arxiv for row in rows}, {row.key for row in rows}
        rows += [_absent(work) for work in works() if work.arxiv not in numbers and work.key not in keys]
    return sorted(rows, key=lambda row: (row.year, row.key))


def _absent(work: Work) -> Filed:
    facts = {name: getattr(work, name) for name in Filed.__dataclass_fields__ if hasattr(work, name)}
    facts.pop("classes", None)
    return Filed(**facts, implemented=False)


def frame(rows: Sequence[Filed]) -> pd.DataFrame:
    """``rows`` as a table, for CSV: classes joined by " + ", ``surveyed`` and ``implemented`` yes or no."""
    columns = [name for name in Filed.__dataclass_fields__ if name != "about"]
    table = pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns)
    for name in ("surveyed", "implemented"):
        table[name] = table[name].map({True: "yes", False: "no"})
    return table


@dataclass(frozen=True)
class Matrix:
    """Methods in the cells of two criteria. A method of several classes stands in each of their cells."""

    rows: taxonomy.Criterion
    columns: taxonomy.Criterion
    cells: dict[tuple[str, str], list[Filed]]  # (row class, column class) -> methods, oldest first
    row_names: tuple[str, ...]  # classes that hold something, and all of the survey's
    column_names: tuple[str, ...]

    def cell(self, row: str, column: str) -> list[Filed]:
        """The methods of both classes."""
        return self.cells.get((row, column), [])

    def upright(self) -> Matrix:
        """The same, turned if that makes it narrower: consoles and pages scroll down, not sideways."""
        if len(self.column_names) <= len(self.row_names):
            return self
        turned = {(column, row): methods for (row, column), methods in self.cells.items()}
        return Matrix(self.columns, self.rows, turned, self.column_names, self.row_names)


def crossing(by: str) -> tuple[str, str]:
    """The two criteria of "masking,target". Raises UserError for anything but two different known ones."""
    names = [name.strip() for name in by.split(",")]
    for name in names:
        if name not in CROSSED:
            raise unknown("criterion", name, CROSSED)
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"a matrix crosses two different criteria, as in masking,target; not {by!r}")
    return names[0], names[1]


def matrix(rows: Sequence[Filed], by: str = "masking,target") -> Matrix:
    """``rows`` by two criteria. Raises UserError as ``crossing``."""
    down, across = (taxonomy.CRITERIA[name] for name in crossing(by))
    cells: dict[tuple[str, str], list[Filed]] = {}
    for row in rows:
        for first in row.classes(down.name):
            for second in row.classes(across.name):
                cells.setdefault((first, second), []).append(row)
    used = [{pair[side] for pair in cells} for side in (0, 1)]
    shown = [
        tuple(c.name for c in criterion.classes if c.name in used[side] or c.source != taxonomy.OWN)
        for side, criterion in enumerate((down, across))
    ]
    return Matrix(down, across, cells, *shown)


def count(rows: Sequence[Filed]) -> str:
    """How many methods, in words."""
    zoo = sum(row.implemented for row in rows)
    if zoo == len(rows):
        return f"{zoo} methods of the zoo"
    return f"{zoo} methods of the zoo and {len(rows) - zoo} further works, marked {ABSENT}"


def markdown(rows: Sequence[Filed], by: str = "masking,target") -> str:
    """The table and the matrix for a README."""
    grid = matrix(rows, by)
    head = ["method", "year", *CROSSED]
    lines = [f"{count(rows)[0].upper()}{count(rows)[1:]}.", "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        paper = f"[{_plain(row.name)}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else _plain(row.name)
        first = f"`{_ticks(row.label)}` {paper}"
        lines.append(_line([first, str(row.year), *(getattr(row, name) or "–" for name in CROSSED)]))
    lines += ["", _line([f"{grid.rows.name} \\ {grid.columns.name}", *grid.column_names])]
    lines.append(_line(["---"] * (len(grid.column_names) + 1)))
    for name in grid.row_names:
        inside = [", ".join(_plain(r.label) for r in grid.cell(name, c)) for c in grid.column_names]
        lines.append(_line([name, *(text or "–" for text in inside)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """``text`` that Markdown neither formats nor takes for HTML, a link or the end of a cell."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#!|~$])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))


def _ticks(text: str) -> str:
    """``text`` for between backticks, where a pipe still ends a cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
