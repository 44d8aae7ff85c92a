"""Numbers of images and seeds against exact power, simulation and the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, nct, norm, ttest_ind, ttest_ind_from_stats
from scipy.stats import t as student

from mimbench import power, stats
from mimbench.outcomes import Hits, Outcomes, Overlaps, Values


def pair(only_a: int, only_b: int, images: int) -> tuple[list[Hits], list[Hits]]:
    """Two methods of one seed that differ on so many images each way."""
    a, b = np.zeros((2, images), bool)
    a[:only_a] = True
    b[only_a : only_a + only_b] = True
    return [Hits(a)], [Hits(b)]


def exact_power(only_a: float, only_b: float, images: int, alpha: float) -> float:
    """Of McNemar's exact test: over how many images differ, and which way. only_a, only_b: shares."""
    differ = only_a + only_b
    low, high = binom.interval(1 - 1e-9, images, differ)
    d = np.arange(int(low), int(high) + 1)
    lost = binom.ppf(alpha / 2, d, 0.5)
    lost -= 2 * binom.cdf(lost, d, 0.5) >= alpha  # the most on one side that p < alpha allows
    beaten = binom.cdf(lost, d, only_b / differ) + binom.cdf(lost, d, only_a / differ)
    return float(binom.pmf(d, images, differ) @ beaten)


@pytest.mark.parametrize(
    ("only_a", "only_b", "images"), [(24, 20, 359), (40, 28, 359), (9, 4, 359), (130, 100, 1000), (6, 1, 500)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 52])
def test_so_many_images_give_the_exact_test_the_power_that_was_asked_for(only_a, only_b, images, alpha):
    needed = power.images_needed(*pair(only_a, only_b, images), alpha=alpha)
    assert needed > images
    found = exact_power(only_a / images, only_b / images, round(needed), alpha)
    few = only_a + only_b < 10  # then a little more than was asked for
    assert 0.77 < found < (0.89 if few else 0.83)


def test_the_number_for_hits_is_connors_and_a_little_more():
    only_a, only_b = 0.12, 0.08
    differ, apart = only_a + only_b, only_a - only_b
    z, reach = norm.ppf(0.975), norm.ppf(0.8)
    connor = ((z * math.sqrt(differ) + reach * math.sqrt(differ - apart**2)) / apart) ** 2
    needed = power.images_needed(*pair(120, 80, 1000))
    assert connor < needed < connor + 2 / apart  # the correction of a sum of whole numbers


def hits_of(seeds: int, images: int, good: np.ndarray, rng: np.random.Generator) -> list[Outcomes]:
    return [Hits(rng.random(images) < good) for _ in range(seeds)]


def test_power_over_several_seeds_is_what_simulated_test_sets_have():
    rng = np.random.default_rng(0)
    ease = rng.beta(3, 1, size=200_000)
    better = np.clip(ease + 0.03, 0, 1)
    needed = round(power.images_needed(hits_of(3, 200_000, better, rng), hits_of(2, 200_000, ease, rng)))
    assert 300 < needed < 5000
    found = 0
    for _ in range(400):
        drawn = rng.integers(0, 200_000, needed)
        a, b = hits_of(3, needed, better[drawn], rng), hits_of(2, needed, ease[drawn], rng)
        found += stats.difference_p(a, b) < 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.05)


def test_power_of_means_is_what_simulated_test_sets_have():
    rng = np.random.default_rng(1)

    def draw(n: int) -> list[list[Outcomes]]:
        shared = rng.gamma(2, 1, n)
        return [[Values(shared + rng.normal(0, 0.5, n))], [Values(shared + rng.normal(0.12, 0.7, n))]]

    needed = round(power.images_needed(*draw(200_000)))
    found = np.mean([stats.difference_p(*draw(needed)) < 0.05 for _ in range(600)])
    assert found == pytest.approx(0.8, abs=0.04)


def test_power_of_mean_iou_is_what_simulated_test_sets_have():
    rng = np.random.default_rng(2)

    def draw(n: int) -> list[list[Outcomes]]:
        unions = rng.integers(50, 500, (n, 5))
        ease = rng.normal(0.6, 0.1, (n, 1))
        return [
            [Overlaps((unions * np.clip(ease + rng.normal(m, 0.15, (n, 5)), 0, 1)).astype(int), unions)]
            for m in (0.015, 0)
        ]

    needed = round(np.mean([power.images_needed(*draw(2000)) for _ in range(5)]))
    found = np.mean([stats.difference_p(*draw(needed)) < 0.05 for _ in range(200)])
    assert found == pytest.approx(0.8, abs=0.08)


def test_a_tie_always_needs_more_images_than_there_are():
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(20, 2000))
        ease = rng.random(n)
        a, b = hits_of(1, n, ease, rng), hits_of(2, n, ease, rng)
        if stats.difference_p(a, b) >= 0.05:
            needed = power.images_needed(a, b)
            assert math.isnan(needed) or needed > n


def test_nothing_is_said_where_nothing_is_known():
    same = [Hits(np.arange(50) < 20)]
    assert math.isnan(power.images_needed(same, same))
    assert math.isnan(power.images_needed(*pair(5, 5, 50)))
    one = [Values(np.array([0.5]))]
    assert math.isnan(power.images_needed(one, [Values(np.array([0.6]))]))
    full = np.full((30, 2), 100)
    assert math.isnan(power.images_needed([Overlaps(full, full)], [Overlaps(full, full)]))
    for apart, spread in ((0.0, 0.1), (0.1, 0.0), (math.nan, 0.1), (0.1, math.nan)):
        assert math.isnan(power.seeds_needed(apart, spread, spread))
    assert math.isnan(power.welch_p(0.1, 0.1, 0.1, 1))
    assert power.seeds_needed(1e-6, 0.1, 0.1) == math.inf


def test_welchs_test_is_scipys():
    expected = ttest_ind_from_stats(0.82, 0.02, 4, 0.79, 0.05, 4, equal_var=False).pvalue
    assert power.welch_p(0.03, 0.02, 0.05, 4) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize(
    ("apart", "a", "b"), [(1.2, 0.9, 1.1), (0.3, 1.0, 0.2), (5.0, 0.4, 0.4), (900.0, 1.0, 1.0)]
)
def test_seeds_are_the_fewest_that_reach_the_power(apart, a, b, alpha):
    def reached(seeds: int) -> float:
        error = math.hypot(a, b) / math.sqrt(seeds)
        freedom = (seeds - 1) * (a * a + b * b) ** 2 / (a**4 + b**4)
        return float(nct.sf(student.ppf(1 - alpha / 2, freedom), freedom, apart / error))

    seeds = int(power.seeds_needed(apart, a, b, alpha))
    assert seeds >= 2
    assert reached(seeds) >= 0.8
    assert seeds == 2 or reached(seeds - 1) < 0.8


def test_so_many_seeds_find_the_difference_as_often_as_promised():
    rng = np.random.default_rng(4)
    seeds = int(power.seeds_needed(0.012, 0.009, 0.014))
    a, b = rng.normal(0.812, 0.009, (4000, seeds)), rng.normal(0.8, 0.014, (4000, seeds))
    found = (ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert found == pytest.approx(0.81, abs=0.025)
