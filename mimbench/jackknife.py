"""Intervals and paired tests for metrics that are no mean over images, such as mean IoU and AP.

Images are left out in up to 100 random groups, each group once (delete-a-group jackknife: Kott 2001, Journal
of Official Statistics 17(4)), which says how far a metric moves with the draw of images; its variance errs
upwards (Efron & Stein 1981, doi:10.1214/aos/1176345462). The groups depend on the number of images alone:
all methods and seeds miss the same ones, and the same records give the same numbers again.

Why no bootstrap: a resample holds 63 % of the images, which empties rare classes and bends precision curves
upwards. Over simulated test sets its percentile intervals covered 83 to 95 % where those made here covered
94 to 98 %. Why no random swaps in the paired test: it errs as seldom as they do (3 to 5 % at p < 0.05) and
finds about as much, without up to a thousand evaluations for each pair of methods.
``tests/outcomes/test_jackknife.py`` repeats both comparisons on a smaller scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from mimbench.outcomes import Outcomes

GROUPS = 100


def share_interval(outcomes: Sequence[Outcomes], level: float) -> tuple[float, float]:
    """Interval, over the draw of test images, of a share averaged over seeds.

    outcomes: one a seed, of the same images. Student's t on the logit scale, so that the ends stay inside
    (0, 1). NaN at both ends where nothing moves, as at 0 and at 1: the images then say nothing.
    """
    value, without = score(outcomes), leave_out(outcomes)
    if not np.isfinite(without).all() or len(without) < 2 or np.ptp(without) == 0:
        return math.nan, math.nan
    t = float(stdtrit(len(without) - 1, (1 + level) / 2))
    if min(without.min(), value) <= 0 or max(without.max(), value) >= 1:
        half = t * _standard_error(without)
        return max(value - half, 0.0), min(value + half, 1.0)
    half = t * _standard_error(logit(without))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def difference_p(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> float:
    """Two-sided p-value that two methods do equally well on the test images; a, b: one a seed.

    Student's t of the difference, paired by leaving out the same images of both. It never says less than
    the flips of as many signs could, and 1 where nothing is known.
    """
    apart, error = difference(a, b)
    if math.isnan(error) or abs(apart) < 1e-12:
        return 1.0
    left_out = groups(a[0].n)
    p = 2 * float(stdtr(left_out - 1, -abs(apart) / error)) if error > 0 else 0.0
    return max(p, 2.0 ** (1 - left_out))


def difference(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> tuple[float, float]:
    """The scores of a minus those of b, and its standard error, NaN where nothing is known of it."""
    moved = leave_out(a) - leave_out(b)
    known = np.isfinite(moved).all() and len(moved) > 1
    return score(a) - score(b), _standard_error(moved) if known else math.nan


def groups(images: int) -> int:
    """How many groups so many images are left out in."""
    return min(images, GROUPS)


def score(outcomes: Sequence[Outcomes]) -> float:
    """The mean over seeds."""
    return float(np.mean([o.score for o in outcomes]))


def leave_out(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """The mean over seeds without each group of images, float64 [groups]."""
    return np.mean([_left_out(o) for o in outcomes], axis=0)


_KNOWN: WeakKeyDictionary[Outcomes, np.ndarray] = WeakKeyDictionary()  # an interval and tests ask for each


def _left_out(outcomes: Outcomes) -> np.ndarray:
    if outcomes not in _KNOWN:
        n = outcomes.n
        member = np.random.default_rng(n).permutation(n) % groups(n)
        kept = member[None] != np.arange(groups(n))[:, None]
        _KNOWN[outcomes] = outcomes.value(kept.astype(np.int32))
    return _KNOWN[outcomes]


def _standard_error(without: np.ndarray) -> float:
    """Of a statistic, out of its values without each group."""
    return float(np.sqrt((len(without) - 1) * np.mean((without - without.mean()) ** 2)))
