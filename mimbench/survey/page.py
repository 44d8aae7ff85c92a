"""Self-contained pages of the survey: no network, no script, and names cannot inject anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mimbench import __version__, taxonomy
from mimbench.report import html
from mimbench.survey.table import CROSSED, Filed, count, matrix


def render(template: str, **values: Any) -> str:
    """One page. Everything in ``values`` is escaped unless it is Markup."""
    templates = html.environment("mimbench.survey")
    style = templates.get_template("survey.css").render()
    return html.sealed(templates, template, style=style, version=__version__, **values)


def taxonomy_page(rows: Sequence[Filed], by: str = "masking,target") -> str:
    """The matrix, what its words mean, and the table of methods."""
    return render(
        "taxonomy.html",
        rows=rows,
        grid=matrix(rows, by).upright(),
        criteria=[taxonomy.CRITERIA[name] for name in CROSSED],
        count=count(rows),
        survey=taxonomy.SURVEY.removeprefix("arXiv:"),
    )
