"""How far two results lie apart, and whether chance alone does as much. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from mimbench import jackknife, stats
from mimbench.outcomes import Hits, Outcomes, Values, unpack
from mimbench.spec import Frozen, Record


class Gap(Frozen):
    """Two results on the same test images, each a mean over its seeds; None where nothing says so.

    difference: a - b; low, high: its interval over the draw of test images (``stats.LEVEL``). p: of the
    paired test that they do equally well. seeds_apart: how far two single seeds of one row lie apart in
    95 of 100 cases, out of the spread of those there are; it is compared with results of one seed.
    """

    metric: str
    unit: str
    images: int
    a: float
    b: float
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None
    difference: float
    low: float | None
    high: float | None
    p: float
    spread: float | None = None
    seeds_known: int = 0
    seeds_apart: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the paired test tells them apart."""
        return self.p < stats.ALPHA

    @property
    def within_seeds(self) -> bool | None:
        """Whether two seeds of one row differ as much; None where their spread is not known."""
        return None if self.seeds_apart is None else abs(self.difference) <= self.seeds_apart

    @property
    def b_inside(self) -> bool:
        """Whether b lies inside the interval of a."""
        return self.a_interval is not None and self.a_interval[0] <= self.b <= self.a_interval[1]


def gap(a: Sequence[Record], b: Sequence[Record], rows: Sequence[Sequence[float]] = ()) -> Gap | str:
    """The gap between two results, or the reason why there is none to speak of.

    a, b: done evaluations, one a seed. rows: what else tells of the spread over seeds, each the scores of one
    row under several seeds.
    """
    metrics = {record.metric for record in (*a, *b)}
    if len(metrics) != 1 or "" in metrics:
        return "they are measured by different metrics: " + " and ".join(sorted(metrics))
    tested = {_tested(record) for record in (*a, *b)}
    if len(tested) > 1:
        return "they were tested on different images"
    try:
        mine, theirs = ([unpack(record.outcomes) for record in side] for side in (a, b))
    except ValueError as error:
        return str(error)
    if len({o.n for o in (*mine, *theirs)}) > 1 or len({type(o) for o in (*mine, *theirs)}) > 1:
        return "their per-image outcomes are of different kinds or numbers of images"
    (metric,) = metrics
    ranked = a[0].facts.get("ranked", True)
    value, other = (float(np.mean([record.metrics[metric] for record in side])) for side in (a, b))
    if not ranked:
        return f"{metric} describes and does not rank: {value:.6g} and {other:.6g}"
    low, high = difference_interval(mine, theirs)
    pooled, known, apart = _spread(rows)
    return Gap(
        metric=metric,
        unit=a[0].facts.get("unit", "share"),
        images=mine[0].n,
        a=value,
        b=other,
        a_interval=_known(stats.interval(mine)),
        b_interval=_known(stats.interval(theirs)),
        difference=value - other,
        low=None if math.isnan(low) else low,
        high=None if math.isnan(high) else high,
        p=stats.difference_p(mine, theirs),
        spread=pooled,
        seeds_known=known,
        seeds_apart=apart,
    )


def difference_interval(
    a: Sequence[Outcomes], b: Sequence[Outcomes], level: float = stats.LEVEL
) -> tuple[float, float]:
    """Interval, over the draw of test images, of a - b. a, b: outcomes of the same images, one a seed.

    Student's t of the differences image by image where the metric is a mean over images; of the values
    without each group of images otherwise (``mimbench.jackknife``). NaN where nothing moves.
    """
    both = (*a, *b)
    hits = all(isinstance(o, Hits) for o in both)
    if hits or all(isinstance(o, Values) for o in both):
        mine, theirs = (
            stats.stack_hits(side).mean(axis=0) if hits else stats.mean_values(side) for side in (a, b)
        )
        middle, error, n = stats.student(mine - theirs)
    else:
        middle, error = jackknife.difference(a, b)
        n = jackknife.groups(a[0].n)
    if not error > 0:
        return (middle, middle) if error == 0 else (math.nan, math.nan)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return middle - half, middle + half


def _spread(rows: Sequence[Sequence[float]]) -> tuple[float | None, int, float | None]:
    """Standard deviation over seeds, pooled over rows; the seeds it is out of; how far two lie apart.

    The difference of two draws has twice the variance of one; Student's t because the deviation is estimated.
    """
    several = [np.asarray(row, np.float64) for row in rows if len(row) > 1]
    freedom = sum(len(row) - 1 for row in several)
    if not freedom:
        return None, 0, None
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in several)
    pooled = (squares / freedom) ** 0.5
    apart = float(stdtrit(freedom, (1 + stats.LEVEL) / 2)) * 2**0.5 * pooled
    return pooled, sum(map(len, several)), apart


def _tested(record: Record) -> str:
    """What says which images an evaluation was tested on."""
    content = record.content
    whole = content.get("data", content.get("setting", {})).get("fingerprint", "")
    return str(record.data.get("fingerprints", {}).get("test", whole))


def _known(ends: tuple[float, float]) -> tuple[float, float] | None:
    return None if any(map(math.isnan, ends)) else ends
