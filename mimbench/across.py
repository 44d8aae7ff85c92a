"""Methods compared over several data sets: mean ranks, Friedman's test, critical differences, profiles.

Tables whose settings differ in nothing but the data belong together, as do the columns of one table on
several data sets. A block is one protocol on one data set; a comparison takes one block a data set, because
two protocols on the same images are no independent evidence; a profile, which tests nothing, takes all.
All blocks are kept: a method with a hole in one is left out, and named, rather than averaged over the rest.
Floors, ceilings and older versions take no part. Imports no torch.

>>> from mimbench import across, board
>>> for found in across.comparisons(board.tables(board.load("mimbench-results"))):  # doctest: +SKIP
...     print(found.title, found.friedman, found.summary())

Tests and critical difference as in Demsar (2006, JMLR 7, 1-30), who asks for five data sets at least.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd
from scipy.special import fdtrc
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from mimbench.report.blocks import Block, Family, LeftOut, complete, families, once
from mimbench.report.tables import Table
from mimbench.stats import ALPHA

LEAST = 5  # data sets that Friedman's test is taken over
DIGITS = 12  # of a score; what differs beyond them differs by rounding


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that no method ranks higher than another.

    statistic, p: chi-squared (Friedman 1937, doi:10.1080/01621459.1937.10503522; corrected for ties, as
    ``scipy.stats.friedmanchisquare``). f, f_p: Iman and Davenport's (1980) form of it, which is less timid
    and decides here.
    """

    statistic: float
    p: float
    f: float
    f_p: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods over data sets by one protocol, or by one protocol a data set.

    scores: float64, index method, columns the blocks' titles; complete. left_out: (method, what it lacks).
    repeated: further results on a data set that counts once. setting: what all share, in words.
    """

    title: str
    blocks: tuple[Block, ...]
    scores: pd.DataFrame
    left_out: LeftOut
    repeated: tuple[str, ...] = ()
    setting: str = ""

    @property
    def missing(self) -> int:
        """How many data sets more a test would take."""
        return max(0, LEAST - len(self.blocks))

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """1 for the best of each block, means of the places where several are equal."""
        return _ranks(self.scores)

    @cached_property
    def mean_ranks(self) -> pd.Series:
        """Best first."""
        return self.ranks.mean(axis=1).sort_values(kind="stable")

    @cached_property
    def friedman(self) -> Friedman | None:
        """None with fewer than ``LEAST`` data sets or three methods."""
        return friedman(self.scores) if not self.missing and len(self.scores) > 2 else None

    @property
    def critical_difference(self) -> float:
        """By which mean ranks must differ (Nemenyi's test); NaN where Friedman's test is not taken."""
        return critical_difference(len(self.scores), len(self.blocks)) if self.friedman else math.nan

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """Largest sets of methods that the test cannot tell apart, best first; none without a test.

        All of them where Friedman's test finds no difference: the critical difference is then not asked.
        """
        if self.friedman is None:
            return []
        names, means = list(self.mean_ranks.index), self.mean_ranks.to_numpy()
        reach = math.inf if self.friedman.f_p >= ALPHA else self.critical_difference
        ends = [int(np.searchsorted(means, start + reach, side="right")) for start in means]
        return [
            tuple(names[start:end])
            for start, end in enumerate(ends)
            if end - start > 1 and (start == 0 or end > ends[start - 1])
        ]

    def summary(self) -> pd.DataFrame:
        """One row a method, best first: mean_rank, then its rank in each block."""
        ranks = self.ranks.loc[self.mean_ranks.index]
        ranks.insert(0, "mean_rank", self.mean_ranks)
        return ranks


@dataclass(frozen=True, eq=False)
class Profile:
    """How near the best each method stays over all blocks (Dolan and More 2002, doi:10.1007/s101070100263).

    Scores here are better when larger, so the ratio to the best is best / own: 1 for the best, 1.25 for four
    fifths of its score, infinite for none. Ratios of error rates would suit accuracies near 1, but are
    undefined where the best is perfect, and say next to nothing of an AP of 0.05 beside one of 0.1.
    scores: as of a ``Comparison``. omitted: titles of blocks whose metric is no share.
    """

    blocks: tuple[Block, ...]
    scores: pd.DataFrame
    left_out: LeftOut
    omitted: tuple[str, ...] = ()
    setting: str = ""

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """best / own, at least 1; 1 for all where the best is 0."""
        scores = self.scores.round(DIGITS)
        best = scores.max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = best / scores
        return ratios.where(scores != best, 1.0)

    def share(self, factor: float) -> pd.Series:
        """On which share of the blocks each method is within ``factor`` of the best."""
        return (self.ratios <= factor * (1 + 1e-12)).mean(axis=1)

    def curve(self, factors: Sequence[float]) -> pd.DataFrame:
        """``share`` of each method, index method, columns the factors."""
        return pd.DataFrame({factor: self.share(factor) for factor in factors})

    def summary(self) -> pd.DataFrame:
        """One row a method, best mean rank first.

        mean_rank; best_on, within_5, within_10: shares of the blocks where its score is the best, at least
        95 and at least 90 % of the best; least: the smallest share of the best score on any block.
        """
        return pd.DataFrame(
            {
                "mean_rank": _ranks(self.scores).mean(axis=1),
                "best_on": self.share(1.0),
                "within_5": self.share(1 / 0.95),
                "within_10": self.share(1 / 0.9),
                "least": 1 / self.ratios.max(axis=1),
            }
        ).sort_values("mean_rank", kind="stable")


def friedman(scores: pd.DataFrame) -> Friedman:
    """Friedman's test of complete scores, one row a method, one column a data set; three methods at least."""
    values = scores.round(DIGITS).to_numpy()
    k, n = values.shape
    if (values == values[0]).all():
        return Friedman(0.0, 1.0, 0.0, 1.0)
    statistic, p = map(float, friedmanchisquare(*values))
    most = n * (k - 1)  # all data sets rank the methods alike
    if most - statistic < 1e-9 * most:
        return Friedman(statistic, p, math.inf, math.factorial(k) ** (1.0 - n))  # as likely as that is
    f = (n - 1) * statistic / (most - statistic)
    return Friedman(statistic, p, f, float(fdtrc(k - 1, (k - 1) * (n - 1), f)))


@cache
def critical_difference(methods: int, data_sets: int, alpha: float = ALPHA) -> float:
    """By which mean ranks over so many data sets must differ at ``alpha`` (Nemenyi's test)."""
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def comparisons(tables: Sequence[Table]) -> list[Comparison]:
    """One comparison a protocol that was evaluated on two data sets or more.

    Where no protocol was on as many data sets as all protocols together, as with classification on some and
    segmentation on others, one more takes the first column of each data set.
    """
    found = []
    for family in families(tables):
        by_protocol: dict[tuple[str, str], list[Block]] = defaultdict(list)
        for block in family.blocks:
            by_protocol[block.definition].append(block)
        own = [_comparison(blocks[0].protocol, blocks, family) for blocks in by_protocol.values()]
        everything = _comparison("The first protocol of each data set", family.blocks, family)
        if len(everything.blocks) > max(len(one.blocks) for one in own):
            own.append(replace(everything, repeated=()))
        found += [one for one in own if len(one.blocks) > 1]
    return found


def _comparison(title: str, blocks: Sequence[Block], family: Family) -> Comparison:
    kept = once(blocks, each_protocol=False)
    repeated = tuple(block.title for block in blocks if block not in kept)
    return Comparison(title, kept, *complete(kept), repeated, family.setting)


def profiles(tables: Sequence[Table]) -> list[Profile]:
    """One profile a group of tables that belong together, where two methods were measured on two blocks."""
    found = []
    for family in families(tables):
        shares = [block for block in family.blocks if block.column.unit == "share"]
        omitted = tuple(block.title for block in family.blocks if block.column.unit != "share")
        blocks = once(shares, each_protocol=True)
        profile = Profile(blocks, *complete(blocks), omitted, family.setting)
        if len(blocks) > 1 and len(profile.scores) > 1:
            found.append(profile)
    return found


def _ranks(scores: pd.DataFrame) -> pd.DataFrame:
    """Average ranks within each column, 1 for the largest score."""
    ranks = rankdata(-scores.round(DIGITS).to_numpy(), axis=0) if len(scores) else scores.to_numpy()
    return pd.DataFrame(ranks, index=scores.index, columns=scores.columns)
