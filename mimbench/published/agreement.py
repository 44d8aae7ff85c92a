"""Do published and measured orders of methods agree? Kendall's tau, with an interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri
from scipy.stats import kendalltau

from mimbench.published import Figure
from mimbench.published.beside import Beside, meant

LEAST = 5  # methods with both numbers, below which an order says nothing
LEVEL = 0.95


@dataclass(frozen=True)
class Agreement:
    """How two orders of the same methods agree."""

    tau: float  # Kendall's tau-b: 1 the same order, 0 unrelated, -1 reversed
    low: float
    high: float
    p: float  # two-sided, that the orders are unrelated


@dataclass(frozen=True)
class Orders:
    """Methods with a measured number and a published one of the same backbone, test data and metric."""

    backbone: str  # that the published figures share
    evaluated_on: str  # likewise
    pairs: tuple[tuple[Beside, Figure], ...]
    agreement: Agreement


def kendall(published: Sequence[float], measured: Sequence[float], level: float = LEVEL) -> Agreement:
    """Kendall's tau-b (scipy) of paired numbers with an interval over the draw of methods.

    The interval is Fieller, Hartley & Pearson's: atanh(tau) is about normal with variance 0.437 / (n - 4)
    (1957, Biometrika 44, doi:10.1093/biomet/44.3-4.470). At ±1, where atanh has no value, half a swapped
    pair is taken off. NaN throughout where one order is all ties; p is exact without ties.

    Raises ValueError for fewer than five pairs.
    """
    n = len(published)
    if n < LEAST:
        raise ValueError(f"orders of fewer than {LEAST} say nothing, got {n}")
    tau, p = (float(x) for x in kendalltau(published, measured))
    if math.isnan(tau):
        return Agreement(tau, tau, tau, p)
    bound = 1 - 1 / (n * (n - 1) / 2)  # one swapped pair lowers tau by twice as much
    middle = math.atanh(max(-bound, min(bound, tau)))
    half = float(ndtri((1 + level) / 2)) * math.sqrt(0.437 / (n - 4))
    return Agreement(tau, min(math.tanh(middle - half), tau), max(math.tanh(middle + half), tau), p)


def orders(found: Sequence[Beside]) -> Orders | None:
    """The two orders of one column's methods; None where fewer than five can be compared.

    found: of one metric. Published figures must share their backbone and test data, so those are taken that
    most methods have. Of each method its usual form counts, with its longest published training, by its
    authors if they published one; of released weights the figure of the nearest setting, on their backbone.
    """
    usual = {
        b.row.method: b
        for b in reversed(found)  # of several released rows of a method the first
        if b.row.role == "method" and (b.row.variant == b.row.method or b.row.release)
    }
    candidates = {method: [f for f in (b.figure, *b.others) if _fits(f, b)] for method, b in usual.items()}
    shared = Counter(place for own in candidates.values() for place in {_place(f) for f in own})
    if not shared:
        return None
    place = min(shared, key=lambda pair: (-shared[pair], pair))
    pairs = []
    for one in reversed(usual.values()):
        own = [f for f in candidates[one.row.method] if _place(f) == place]
        if own and one.row.release:
            pairs.append((one, own[0]))
        elif own:
            pairs.append((one, max(own, key=lambda f: (f.measured_by == "authors", f.epochs or 0))))
    if len(pairs) < LEAST:
        return None
    agreement = kendall([f.value for _, f in pairs], [b.value for b, _ in pairs])
    return Orders(*place, tuple(pairs), agreement)


def _fits(figure: Figure, one: Beside) -> bool:
    """Whether a figure may stand for a row in the published order."""
    if one.row.release is not None:
        return figure.backbone_key == one.row.setting.backbone and meant(figure, one.row)
    return not figure.variant


def _place(figure: Figure) -> tuple[str, str]:
    return figure.backbone, figure.evaluated_on
