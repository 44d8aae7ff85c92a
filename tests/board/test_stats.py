"""Uncertainty against closed forms, scipy and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest

from mimbench import stats
from mimbench.outcomes import Hits


def random_hits(seeds: int, images: int, accuracy: float, key: int = 0) -> np.ndarray:
    return np.random.default_rng(key).random((seeds, images)) < accuracy


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(n: int, data):
    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert stats.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_inverts_the_score_test():
    """By definition the ends are where |mean - p| = z·sqrt(p(1 - p)/n); n may be no integer."""
    mean, n, z = 0.83, 411.5, 1.959963984540054

    def excess(p: float) -> float:
        return abs(mean - p) - z * math.sqrt(p * (1 - p) / n)

    low, high = stats.wilson(mean, n)
    assert low == pytest.approx(brentq(excess, 1e-9, mean), abs=1e-10)
    assert high == pytest.approx(brentq(excess, mean, 1 - 1e-9), abs=1e-10)


@pytest.mark.parametrize(("mean", "n"), [(-0.1, 10), (1.1, 10), (0.5, 0), (float("nan"), 10)])
def test_wilson_refuses_what_is_no_proportion(mean: float, n: float):
    with pytest.raises(ValueError, match="wilson takes"):
        stats.wilson(mean, n)


def test_perfect_and_hopeless_scores_still_have_a_width():
    assert stats.image_interval(np.ones((1, 50), bool)) == pytest.approx((0.92865, 1.0), abs=1e-5)
    assert stats.image_interval(np.zeros((2, 50), bool)) == pytest.approx((0.0, 0.07135), abs=1e-5)


def test_interval_of_one_seed_is_wilson():
    hits = random_hits(1, 300, 0.7)
    assert stats.image_interval(hits) == pytest.approx(stats.wilson(hits.mean(), 300), abs=1e-12)


def test_seeds_that_err_alike_do_not_narrow_the_interval():
    one = random_hits(1, 300, 0.7)
    assert stats.image_interval(np.repeat(one, 5, axis=0)) == pytest.approx(
        stats.image_interval(one), abs=1e-12
    )


@given(st.integers(1, 4), st.integers(2, 60), st.integers(0, 10_000))
def test_interval_lies_between_dependent_and_independent_answers(seeds: int, images: int, key: int):
    hits = random_hits(seeds, images, 0.6, key)
    mean = hits.mean()
    low, high = stats.image_interval(hits)
    widest, narrowest = stats.wilson(mean, images), stats.wilson(mean, images * seeds)
    tiny = 1e-12
    assert widest[0] - tiny <= low <= narrowest[0] + tiny
    assert narrowest[1] - tiny <= high <= widest[1] + tiny


def test_interval_covers_the_truth_as_often_as_it_says():
    """Test sets drawn from a population of images whose difficulty all three seeds share."""
    rng = np.random.default_rng(3)
    covered, rounds = 0, 600
    for _ in range(rounds):
        ease = rng.beta(2, 1, size=200)  # mean 2/3
        low, high = stats.image_interval(rng.random((3, 200)) < ease)
        covered += low <= 2 / 3 <= high
    assert 0.93 <= covered / rounds <= 0.97


def test_spread_is_the_sample_standard_deviation_and_empty_for_one_seed():
    assert stats.spread([0.1, 0.2, 0.4]) == pytest.approx(math.sqrt(0.07 / 3))
    assert math.isnan(stats.spread([0.5]))


def test_paired_test_of_one_seed_is_mcnemars():
    a, b = random_hits(1, 400, 0.7, 1), random_hits(1, 400, 0.65, 2)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert stats.paired_p(a, b) == pytest.approx(expected, rel=1e-9)
    assert stats.paired_p(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(2, 2), (3, 3), (3, 1), (2, 3)])
def test_paired_test_of_several_seeds_counts_all_sign_flips(seeds_a: int, seeds_b: int):
    a, b = random_hits(seeds_a, 11, 0.8, 5), random_hits(seeds_b, 11, 0.4, 6)
    difference = a.mean(axis=0) - b.mean(axis=0)
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((1, -1), repeat=11)]
    expected = np.mean([s >= abs(difference.sum()) - 1e-9 for s in sums])
    assert stats.paired_p(a, b) == pytest.approx(expected, abs=1e-12)


def test_identical_methods_are_not_told_apart():
    hits = random_hits(2, 100, 0.5)
    assert stats.paired_p(hits, hits) == 1.0


def test_paired_test_refuses_different_test_sets():
    with pytest.raises(ValueError, match="same images"):
        stats.paired_p(np.ones((1, 5), bool), np.ones((1, 6), bool))


def hits_with(first: int, images: int = 200) -> Hits:
    """The first so many images right: the one ahead is right wherever the other is."""
    return Hits(np.arange(images) < first)


def test_ties_are_ranked_as_ties():
    # One-sided differences of d images have p = 2^(1-d): 3 are not told apart, 10 are.
    labels, p_above = stats.ranks([[hits_with(n)] for n in (150, 140, 137, 120)])
    assert labels == ["1", "2=", "2=", "4"]
    assert math.isnan(p_above[0])
    assert p_above[1:] == pytest.approx([2**-9, 0.25, 2**-16], rel=1e-9)


def test_a_chain_of_small_steps_does_not_tie_the_first_with_the_last():
    labels, _ = stats.ranks([[hits_with(n)] for n in (150, 147, 144, 141)])
    assert labels == ["1=", "1=", "3=", "3="]


def test_nothing_is_ranked_without_error():
    assert stats.ranks([]) == ([], [])
