"""Self-contained pages of the survey: no network, no script, and names cannot inject anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mimbench import __version__, taxonomy
from mimbench.survey.table import CROSSED, Filed, count, matrix


def render(template: str, **values: Any) -> str:
    """One page. Everything in ``values`` is escaped unless it is Markup."""
    environment = Environment(
        loader=PackageLoader("mimbench.survey"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("survey.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(style), style_hash=f"sha256-{digest}", version=__version__, **values
    )


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
