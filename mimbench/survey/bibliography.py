"""A bibliography as papers: CSV with the columns title and abstract, or BibTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pybtex.database import BibliographyData, parse_string
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text

from mimbench.errors import UserError

ARXIV = re.compile(r"(?<!\d)(\d{4}\.\d{4,5})(?!\d)")  # of the numbers since April 2007
NUMBERED = ("arxiv", "arxiv_id", "eprint", "url", "doi", "journal", "note", "howpublished", "link")
WORD = re.compile(r"\w\w")  # what scikit-learn's vectorizers count
FEWEST = 3  # papers, below which there is nothing to cluster


@dataclass(frozen=True)
class Paper:
    """One entry. ``arxiv`` and ``label``: "" where the bibliography says nothing."""

    title: str
    abstract: str
    arxiv: str = ""
    label: str = ""

    @property
    def text(self) -> str:
        """What is clustered: title and abstract."""
        return f"{self.title} {self.abstract}"


@dataclass(frozen=True)
class Bibliography:
    """Papers that can be clustered, and what was left out with the reason."""

    papers: tuple[Paper, ...]
    left_out: tuple[tuple[str, str], ...]  # (title or place, reason)


def read(path: Path, encoding: str = "utf-8") -> Bibliography:
    """The papers of a .csv or .bib file; entries without an abstract and repeated titles are left out.

    Raises UserError for a file that cannot be read as such, and if fewer than three papers are left.
    """
    text = _decoded(path, encoding)
    entries = _bibtex(text, path) if path.suffix.lower() == ".bib" else _csv(text, path)
    papers: dict[str, Paper] = {}
    left_out: list[tuple[str, str]] = []
    for place, paper in entries:
        name = paper.title or place
        if not WORD.search(paper.abstract):
            left_out.append((name, "has no abstract"))
        elif same(name) in papers:
            left_out.append((name, "is there already"))
        else:
            papers[same(name)] = paper
    if len(papers) < FEWEST:
        raise UserError(
            f"{path} holds {_number(len(papers))} with an abstract, and clustering takes {FEWEST} or more"
            + (f"; without one is {left_out[0][0]!r}" if left_out else "")
        )
    return Bibliography(tuple(papers.values()), tuple(left_out))


def same(title: str) -> str:
    """What two spellings of a title share: its letters and digits."""
    return "".join(letter for letter in title.casefold() if letter.isalnum()) or title


def _number(papers: int) -> str:
    return "no paper" if papers == 0 else "one paper" if papers == 1 else f"{papers} papers"


def _decoded(path: Path, encoding: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; name a .csv or .bib file") from error
    try:
        return data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise UserError(f"no encoding is called {encoding!r}; utf-8, cp1252 and utf-16 are some") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {encoding} text (at byte {error.start}); save it as UTF-8 or name its encoding, "
            "as in --encoding cp1252"
        ) from error


def _csv(text: str, path: Path) -> Iterator[tuple[str, Paper]]:
    first = text.lstrip().split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), delimiter=separator)
    try:
        columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
        missing = [name for name in ("title", "abstract") if name not in columns]
        if missing:
            there = ", ".join(map(repr, columns)) or "none"
            raise UserError(
                f"{path} has no column {' and no column '.join(map(repr, missing))}; its first line must "
                f"name the columns title and abstract, and it names {there[:200]}"
            )
        for row in reader:
            fields = {name: " ".join((row[column] or "").split()) for name, column in columns.items()}
            yield f"line {reader.line_num}", _paper(fields)
    except csv.Error as error:
        raise UserError(f"{path} is no sound CSV: {error} in line {reader.line_num}") from error


def _bibtex(text: str, path: Path) -> Iterator[tuple[str, Paper]]:
    try:
        data: BibliographyData = parse_string(text, "bibtex")
        for key, entry in data.entries.items():
            fields = {name.lower(): _plain(value) for name, value in entry.fields.items()}
            yield f"entry {key}", _paper(fields)
    except PybtexError as error:
        raise UserError(f"{path} is no sound BibTeX: {' '.join(str(error).split())}") from error


def _plain(latex: str) -> str:
    """LaTeX as text: accents become letters, braces and formatting go, what is left of commands too."""
    # Reference managers and arXiv write a bare % for per cent; to a LaTeX reader the rest were a comment.
    text = str(Text.from_latex(re.sub(r"(?<!\\)%", r"\\%", latex)))
    text = re.sub(r"\\[a-zA-Z]+\*?|\\.", " ", text)
    return " ".join(re.sub(r"[{}$~]", " ", text).split())


def _paper(fields: dict[str, str]) -> Paper:
    numbers = [match[1] for name in NUMBERED if (match := ARXIV.search(fields.get(name, "")))]
    return Paper(
        title=fields.get("title", ""),
        abstract=fields.get("abstract", ""),
        arxiv=numbers[0] if numbers else "",
        label=fields.get("label", ""),
    )
