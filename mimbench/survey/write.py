"""The taxonomy in each of its formats."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from mimbench.report.sheet import csv_text
from mimbench.survey import draw, page, table
from mimbench.survey.table import Filed


def written(rows: Sequence[Filed], format: str, by: str = "masking,target") -> bytes:
    """``rows`` as table, csv, markdown, html or png. Raises UserError as ``table.crossing``."""
    if format == "png":
        return draw.picture(rows, by)
    if format == "csv":
        return csv_text(table.frame(rows)).encode()
    if format == "markdown":
        return table.markdown(rows, by).encode()
    if format == "html":
        return page.taxonomy_page(rows, by).encode()
    text = io.StringIO()
    Console(file=text, width=120).print(draw.console(rows, by))
    return text.getvalue().encode()
