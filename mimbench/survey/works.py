"""The works that the survey discusses and their like, as facts: number, year, classes. Imports no torch.

``works.csv`` has a row a work: title (where known), arXiv number, modality, the classes of
``mimbench.taxonomy`` under each criterion, whether the survey discusses it and under which headings
(``section`` of its text; for works that only its list of papers has, the heading there). Surveyed works are
filed as the survey files them, the others by the same rules.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mimbench import taxonomy


@dataclass(frozen=True)
class Work:
    """One published method or study. ``arxiv``, ``title``, ``section``, ``contribution``: "" if unknown."""

    key: str
    name: str
    title: str
    year: int
    arxiv: str
    modality: str
    scheme: str
    masking: str
    target: str
    architecture: str
    objective: str
    surveyed: bool
    section: str
    contribution: str

    def classes(self, criterion: str) -> tuple[str, ...]:
        """Its classes under ``criterion``; () where the survey files it under none."""
        text = str(getattr(self, criterion))
        return taxonomy.CRITERIA[criterion].split(text) if text else ()


@cache
def works() -> tuple[Work, ...]:
    """All works of the package's file, oldest first."""
    text = files("mimbench.survey").joinpath("works.csv").read_text(encoding="utf-8")
    return tuple(_work(row) for row in csv.DictReader(text.splitlines()))


def _work(row: dict[str, Any]) -> Work:
    return Work(**{**row, "year": int(row["year"]), "surveyed": row["surveyed"] == "yes"})
