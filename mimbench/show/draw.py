"""Draws sheets with matplotlib, without a display."""

from __future__ import annotations

import io
import textwrap
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mimbench.show.panels import Panel, Sheet

PANEL_INCHES = 1.75
DPI = 144
LINE_INCHES = 0.19  # of text of 9 points


def png(sheet: Sheet) -> bytes:
    """The sheet as a PNG file."""
    columns, rows = len(sheet.headings), len(sheet.rows)
    heights = [max(panel.image.shape[0] / panel.image.shape[1] for panel in row) for row in sheet.rows]
    captions = any(panel.caption for row in sheet.rows for panel in row)
    width = max(PANEL_INCHES * columns, 4.6)
    note = _wrapped(sheet.note, width)
    between = LINE_INCHES * (1.3 if captions else 0.4)
    bottom = LINE_INCHES * (len(note) + 1) + (0.28 * -(-len(sheet.legend) // 4) if sheet.legend else 0)
    top = LINE_INCHES * 4
    panels = PANEL_INCHES * sum(heights)
    height = top + panels + between * rows + bottom

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    heading: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10, "weight": "bold"}
    figure.text(0.5, 1 - LINE_INCHES / height, sheet.title, **heading)
    each = 1 / columns
    y = 1 - top / height
    for number, (row, ratio) in enumerate(zip(sheet.rows, heights, strict=True)):
        inches = PANEL_INCHES * ratio
        y -= inches / height
        for column, panel in enumerate(row):
            axes = figure.add_axes((column * each + each * 0.03, y, each * 0.94, inches / height))
            _panel(axes, panel)
            if number == 0:
                axes.set_title(sheet.headings[column], fontsize=8.5, pad=5)
        y -= between / height
    for place, line in enumerate(reversed(note)):
        figure.text(0.02, (LINE_INCHES * (place + 0.8)) / height, line, fontsize=8, color="#555555")
    if sheet.legend:
        handles = [Patch(color=colour, label=name) for name, colour in sheet.legend]
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(4, len(handles)),
            fontsize=7,
            frameon=False,
            bbox_to_anchor=(0.5, LINE_INCHES * (len(note) + 0.5) / height),
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Any, panel: Panel) -> None:
    axes.imshow(panel.image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("N")
    for spine in axes.spines.values():
        spine.set_visible(bool(panel.frame))
        spine.set_color(panel.frame or "none")
        spine.set_linewidth(2.5)
    for box in panel.boxes:
        axes.add_patch(
            Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor=box.colour, linewidth=1)
        )
        if box.label:
            axes.text(
                box.x,
                box.y,
                box.label,
                fontsize=5.5,
                color="white",
                va="bottom",
                bbox={"facecolor": box.colour, "edgecolor": "none", "pad": 0.6},
                clip_on=True,
            )
    if panel.caption:
        axes.set_xlabel(panel.caption, fontsize=7.5, labelpad=2.5)


def _wrapped(text: str, inches: float) -> list[str]:
    return textwrap.wrap(text, max(30, int(inches * 16.5)))
