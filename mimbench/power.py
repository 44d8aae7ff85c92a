"""How many test images, or seeds, would tell two methods apart that a table ties.

Answers suppose that the difference is as large as it looks and that further images, or seeds, are like
those there are. A guess, then, and the rougher the fewer there are: half the difference takes four times as
many. NaN stands where nothing can be said. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import nctdtr, ndtri, stdtr, stdtrit

from mimbench import jackknife, stats
from mimbench.outcomes import Hits, Outcomes, Values

POWER = 0.8  # the probability with which the test is to find the difference
MOST_SEEDS = 10_000  # beyond, the answer is infinite


def images_needed(
    a: Sequence[Outcomes], b: Sequence[Outcomes], alpha: float = stats.ALPHA, power: float = POWER
) -> float:
    """How many test images ``stats.difference_p`` needs to find what is seen between a and b.

    a, b: outcomes of the same images, one a seed. alpha: two-sided level of the test. NaN where the two
    score the same or nothing is known of how the difference moves with the images.

    Hits: the number for McNemar's test out of the shares of images on which the two differ (Connor 1987,
    doi:10.2307/2531961), in the form that holds for sign flips of any size, with the continuity correction
    that the exact test needs. Means: that of the paired t-test (Guenther 1981, The American
    Statistician 35(4)).
    Everything else: as the jackknife's standard error shrinks with the root of the number.
    """
    z, reach = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    n = a[0].n
    if all(isinstance(o, Hits) for o in (*a, *b)):
        steps, unit = stats.sign_steps(stats.stack_hits(a), stats.stack_hits(b))
        apart, square = (
            abs(float(steps.mean())) / unit,
            float((steps.astype(np.float64) ** 2).mean()) / unit**2,
        )
        if apart == 0:
            return math.nan
        # Flips alone scatter by the mean square, the data by what is left of it around the mean; half a
        # step of the sum, one unit, is lost to its being a whole number: apart·n - 1 = scatter·sqrt(n).
        scatter = z * math.sqrt(square) + reach * math.sqrt(max(square - apart**2, 0.0))
        return ((scatter + math.sqrt(scatter**2 + 4 * apart)) / (2 * apart)) ** 2
    if all(isinstance(o, Values) for o in (*a, *b)):
        differences = stats.mean_values(a) - stats.mean_values(b)
        apart, deviation = (
            abs(float(differences.mean())),
            float(np.std(differences, ddof=1)) if n > 1 else 0.0,
        )
        if not apart > 0 or not deviation > 0:
            return math.nan
        return ((z + reach) * deviation / apart) ** 2 + z * z / 2
    apart, error = jackknife.difference(a, b)
    if not error > 0 or abs(apart) < 1e-12:
        return math.nan
    t = float(stdtrit(jackknife.GROUPS - 1, 1 - alpha / 2))
    return n * ((t + reach) * error / apart) ** 2


def welch_p(apart: float, spread_a: float, spread_b: float, seeds: int) -> float:
    """Two-sided p-value of Welch's t-test that two methods do equally well over seeds, so many of each.

    apart: difference of their means. spread_a, spread_b: sample standard deviations over seeds.
    NaN with fewer than two seeds or no spread.
    """
    variance = spread_a**2 + spread_b**2
    if seeds < 2 or not variance > 0:
        return math.nan
    t = abs(apart) / math.sqrt(variance / seeds)
    return 2 * float(stdtr(_freedom(spread_a, spread_b, seeds), -t))


def seeds_needed(
    apart: float, spread_a: float, spread_b: float, alpha: float = stats.ALPHA, power: float = POWER
) -> float:
    """How many seeds of each of two methods Welch's t-test needs to find ``apart`` between their means.

    Arguments as for ``welch_p``. Its power is that of a noncentral t with Welch's degrees of freedom. NaN
    without a difference or a spread, infinite above ``MOST_SEEDS``.
    """
    if not abs(apart) > 0 or not spread_a**2 + spread_b**2 > 0:
        return math.nan
    few, enough = 1, 2
    while _welch_power(apart, spread_a, spread_b, enough, alpha) < power:
        few, enough = enough, 2 * enough
        if few > MOST_SEEDS:
            return math.inf
    while enough - few > 1:
        middle = (few + enough) // 2
        if _welch_power(apart, spread_a, spread_b, middle, alpha) < power:
            few = middle
        else:
            enough = middle
    return float(enough)


def _freedom(spread_a: float, spread_b: float, seeds: int) -> float:
    """Welch's degrees of freedom (1947, doi:10.1093/biomet/34.1-2.28) of two means over as many seeds."""
    return (seeds - 1) * (spread_a**2 + spread_b**2) ** 2 / (spread_a**4 + spread_b**4)


def _welch_power(apart: float, spread_a: float, spread_b: float, seeds: int, alpha: float) -> float:
    """The probability of finding the better one; that of finding the worse one better is next to nothing."""
    freedom = _freedom(spread_a, spread_b, seeds)
    shift = abs(apart) / math.sqrt((spread_a**2 + spread_b**2) / seeds)
    return 1 - float(nctdtr(freedom, shift, stdtrit(freedom, 1 - alpha / 2)))
