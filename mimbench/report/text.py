"""Numbers as people read them, the same on the console and on the page."""

from __future__ import annotations

import math
import re
from typing import Any

from markupsafe import Markup

HOLE = "–"


def percent(share: float, digits: int = 1) -> str:
    """0.8725 -> "87.2"; an en dash for a hole. Rounds half to even, as Python does."""
    return HOLE if math.isnan(share) else f"{100 * share:.{digits}f}"


def number(value: float) -> str:
    """Three significant digits: "0.00123", "12.3", "4560", "1.2e-07"; an en dash for a hole."""
    if math.isnan(value):
        return HOLE
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 1e-5:
        return f"{value:.1e}"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(decimals, 6)}f}"


def probability(p: float) -> str:
    """A p-value: "0.031", "< 0.001"."""
    return HOLE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: Any) -> str:
    """JSON data as words: {"lr": [0.1, 1], "batch_norm": true} -> "lr 0.1, 1; batch norm yes"."""
    if isinstance(value, dict):
        return "; ".join(f"{str(name).replace('_', ' ')} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cut(name: str, most: int) -> str:
    """``name`` in at most ``most`` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def short(name: str) -> str:
    """A name that fits a cell: of a very long one the beginning and the end, which tell it apart."""
    return name if len(name) <= 160 else f"{name[:100]}…{name[-40:]}"


def breakable(name: str) -> Markup:
    """``short``, escaped, to be broken between settings where a line is too short for it."""
    return Markup("<wbr>").join(re.split(r"(?<=[\[,=])", short(name)))
