"""Published figures as people read them: on a terminal, as Markdown, as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench.errors import unknown
from mimbench.published import CONFIDENCE, Figure, frame
from mimbench.report.markdown import escape

FORMATS = ("table", "csv", "markdown")
HEADS = ("method", "metric", "%", "protocol", "setting", "source")
CONTROL = dict.fromkeys(range(32))  # of a terminal: no name may move its cursor


def told(figures: Sequence[Figure], format: str = "table") -> RenderableType | str:
    """The figures in one of ``FORMATS``; text for files, something ``rich`` prints for "table".

    Raises UnknownNameError for another format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "csv":
        from mimbench.report.sheet import csv_text

        return csv_text(frame(figures))
    return _markdown(figures) if format == "markdown" else _table(figures)


def _cells(figure: Figure) -> tuple[str, ...]:
    protocol = figure.protocol + (f" ({figure.protocol_key})" if figure.protocol_key else "")
    source = "; ".join([figure.source, *figure.remarks])
    cells = (figure.name, figure.metric, f"{figure.value:g}", protocol, figure.setting, source)
    return tuple(cell.translate(CONTROL) for cell in cells)


def _table(figures: Sequence[Figure]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEADS:
        table.add_column(
            name, justify="right" if name == "%" else "left", no_wrap=name in ("metric", "%"), overflow="fold"
        )
    for figure in figures:
        table.add_row(*map(Text, _cells(figure)))
    words = "; ".join(f"{level}: {meaning}" for level, meaning in CONFIDENCE.items())
    count = f"{len(figures)} published figures, copied from their sources; mimbench did not measure them."
    return Group(table, Text(f"{count} Confidence is high unless said. {words}.", style="dim"))


def _markdown(figures: Sequence[Figure]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}"]
    for figure in figures:
        *cells, source = map(escape, _cells(figure))
        if figure.url:
            source = f"[{source}](<{quote(figure.url, safe=':/?&=#%~)(,;@+')}>)"
        lines.append(f"| {' | '.join([*cells, source])} |")
    return "\n".join(lines) + "\n"
