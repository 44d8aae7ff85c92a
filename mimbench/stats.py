"""Uncertainty of scores: intervals over test images, spread over seeds, paired tests, ranks with ties.

Two sources of chance are kept apart. Another draw of test images would move a score (the interval),
and another draw of initialisation and data order would move it (the spread). Neither contains the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import bdtr, ndtri, stdtr, stdtrit
from scipy.stats import binom

from mimbench import jackknife
from mimbench.outcomes import Hits, Outcomes, Values

LEVEL = 0.95  # of intervals
ALPHA = 0.05  # of the paired tests of one column together, see ``ranks``


def interval(outcomes: Sequence[Outcomes], level: float = LEVEL) -> tuple[float, float]:
    """Interval, over the draw of test images, of a metric averaged over seeds.

    outcomes: one a seed, of one kind and of the same images, which are the sampling units; the seeds are
    held fixed. Hits have ``image_interval``, means of other numbers Student's t over images, everything
    else ``jackknife.share_interval``. NaN where the images say nothing about it.
    """
    if all(isinstance(o, Hits) for o in outcomes):
        return image_interval(stack_hits(outcomes), level)
    if all(isinstance(o, Values) for o in outcomes):
        mean, error, n = student(mean_values(outcomes))
        half = float(stdtrit(n - 1, (1 + level) / 2)) * error if n > 1 else float("nan")
        return mean - half, mean + half
    return jackknife.share_interval(outcomes, level)


def difference_p(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> float:
    """Two-sided p-value that two methods do equally well on the same images. a, b: outcomes, one a seed.

    Exact for hits (``paired_p``), Student's paired t for means of other numbers, for everything else
    ``jackknife.difference_p``. Methods may have different numbers of seeds.
    """
    images = {o.n for o in (*a, *b)}
    if len(images) > 1:
        raise ValueError(f"paired tests need the same images, got {' and '.join(map(str, sorted(images)))}")
    if all(isinstance(o, Hits) for o in (*a, *b)):
        return paired_p(stack_hits(a), stack_hits(b))
    if all(isinstance(o, Values) for o in (*a, *b)):
        mean, error, n = student(mean_values(a) - mean_values(b))
        if n < 2 or mean == 0:
            return 1.0
        p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error > 0 else 0.0
        return max(p, 2.0 ** (1 - min(n, 1000)))  # no less than flips of the signs could say
    return jackknife.difference_p(a, b)


def stack_hits(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """Hits of all seeds, bool [S, N]."""
    return np.stack([o.hits for o in outcomes if isinstance(o, Hits)])


def mean_values(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """Mean over seeds of each image, float64 [N]."""
    return np.mean([o.values for o in outcomes if isinstance(o, Values)], axis=0)


def student(numbers: np.ndarray) -> tuple[float, float, int]:
    """Mean, its standard error and how many."""
    n = len(numbers)
    return float(numbers.mean()), float(numbers.std(ddof=1) / n**0.5) if n > 1 else float("nan"), n


def wilson(mean: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion ``mean`` seen in ``n`` trials; ``n`` may be fractional.

    Unlike mean ± z·se it stays inside [0, 1] and has a width at 0 and at 1 (Wilson 1927,
    doi:10.1080/01621459.1927.10502953; compared in Brown, Cai & DasGupta 2001, doi:10.1214/ss/1009213286).
    """
    if not n > 0 or not 0 <= mean <= 1:
        raise ValueError(f"wilson takes a mean in [0, 1] and n > 0, got {mean} and {n}")
    z = float(ndtri((1 + level) / 2))
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)))
    # At 0 and at 1 one end is the mean itself; rounding must not put it a hair beyond.
    return min(max(middle - half, 0.0), mean), max(min(middle + half, 1.0), mean)


def image_interval(hits: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Interval, over the draw of test images, of the accuracy averaged over seeds.

    hits: bool [S, N], whether the method got image j right under seed i. The seeds are held fixed and
    the images are the sampling units: S answers to one image are not S independent images. So Wilson's
    interval is taken at the effective number of images, n = p(1 - p) / var(per-image mean) · N, which is
    N for one seed (Wilson's own interval), N when all seeds err on the same images, and never more
    than the S·N answers there are (Wilson with an effective sample size: Korn & Graubard 1998; compared in
    Dean & Pagano 2015, doi:10.1093/jssam/smv024).
    """
    seeds, images = hits.shape
    per_image = hits.mean(axis=0)
    mean, variance = float(per_image.mean()), float(per_image.var())
    answers = float(seeds * images)
    if mean in (0.0, 1.0):
        effective = float(images)  # all alike: nothing says that the seeds are independent
    else:
        effective = min(answers, mean * (1 - mean) / variance * images) if variance > 0 else answers
    return wilson(mean, effective, level)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation over seeds (n - 1); NaN with fewer than two, where it says nothing."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def sign_steps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
    """Per-image differences in hits as whole numbers, int64 [N], and the unit that all are multiples of.

    a, b: bool [S, N]. Seeds of b times hits of a, minus the reverse; the unit is 1 where none differs.
    """
    steps = a.sum(axis=0, dtype=np.int64) * len(b) - b.sum(axis=0, dtype=np.int64) * len(a)
    return steps, int(np.gcd.reduce(steps)) or 1


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value that two methods are equally accurate on the test images. a, b: bool [S, N].

    Exact sign-flip test on the per-image difference in hits: were the methods alike, each image's
    difference could as well have had the other sign. With one seed this is McNemar's exact test
    (McNemar 1947, doi:10.1007/BF02295996); the flips are Fisher's randomisation (1935, section 21).
    Methods may have different numbers of seeds.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"paired tests need the same images, got {a.shape[1]} and {b.shape[1]}")
    difference, unit = sign_steps(a, b)
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if sizes.size == 0:
        return 1.0
    observed = abs(int(difference.sum())) // unit
    if sizes.size == 1:
        count = int(counts[0])
        return min(1.0, 2 * float(bdtr((count - observed) // 2, count, 0.5)))
    # The sum of c flips of size s is s·(2·Binomial(c, 1/2) - c); the sizes add up by convolution.
    density = np.ones(1)
    for size, count in zip(sizes // unit, counts, strict=True):
        flips = np.zeros(2 * int(size) * int(count) + 1)
        flips[:: 2 * int(size)] = binom.pmf(np.arange(count + 1), count, 0.5)
        density = flips if density.size == 1 else fftconvolve(density, flips)
    totals = np.abs(np.arange(density.size) - density.size // 2)
    return float(np.clip(density[totals >= observed].sum(), 0.0, 1.0))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family of tests, in the order given: reject where they are below alpha.

    The chance of even one false rejection stays below alpha, whichever hypotheses are true and however the
    tests depend on each other (Holm 1979, Scandinavian Journal of Statistics 6(2)). The smallest p is
    multiplied by the number of tests, the next one by one less, and so on; none falls below one before it.
    Raises ValueError for what is no probability.
    """
    found = np.asarray(p, np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"holm takes a list of probabilities, got {list(p)}")
    order = np.argsort(found, kind="stable")
    steps = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


class Ranking(NamedTuple):
    """Of methods given best first.

    labels: competition ranks with ties: "1", "2=", "2=", "4". p_above: of the paired test against the one
    just above, adjusted by ``holm`` among all such neighbours; NaN for the first. p_above_raw: unadjusted.
    """

    labels: list[str]
    p_above: list[float]
    p_above_raw: list[float]


def ranks(methods: Sequence[Sequence[Outcomes]], alpha: float = ALPHA) -> Ranking:
    """Ranks with ties of methods given best first. methods: the outcomes of each, one a seed.

    A method opens a rank of its own when a paired test tells it from the best of the rank above. Comparing
    with that best, and not only with the neighbour, keeps a chain of small steps from tying a first with a
    last. Of m methods the m - 1 tests of neighbours are one family, corrected by ``holm``. Best and method
    that are no neighbours are the ends of a run, picked because they lie far apart: were all m alike, the
    two most distant of them would pass a test corrected for m - 1 comparisons far too often. So theirs is
    corrected for all m(m - 1)/2 pairs they could have been (Bonferroni).
    """
    m = len(methods)
    raw = [difference_p(a, b) for a, b in pairwise(methods)]
    nan = [float("nan")][:m]
    above = nan + holm(raw)
    groups: list[list[int]] = []
    for i, mine in enumerate(methods):
        if groups:
            best = groups[-1][0]
            pairs = m * (m - 1) / 2
            p = above[i] if best == i - 1 else difference_p(methods[best], mine) * pairs
            if p >= alpha:
                groups[-1].append(i)
                continue
        groups.append([i])
    labels = [f"{group[0] + 1}" + ("=" if len(group) > 1 else "") for group in groups for _ in group]
    return Ranking(labels, above, nan + raw)
