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


def step_down(p: list[float], alpha: float) -> set[int]:
    """Holm's procedure as he writes it: the smallest p first, each at alpha / (how many are left)."""
    left, rejected = sorted(range(len(p)), key=p.__getitem__), set()
    while left and p[left[0]] <= alpha / len(left):
        rejected.add(left.pop(0))
    return rejected


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], alpha: float):
    adjusted = stats.holm(p)
    near = [abs(a - alpha) < 1e-9 for a in adjusted]  # a hair apart by rounding
    rejected = step_down(p, alpha)
    assert all(near[i] or (adjusted[i] <= alpha) == (i in rejected) for i in range(len(p)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_makes_a_p_value_smaller_nor_changes_their_order(p: list[float]):
    adjusted = np.array(stats.holm(p))
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()  # no stricter than Bonferroni's
    assert adjusted.min() == pytest.approx(min(1, len(p) * min(p)))
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_holm_rarely_errs_even_once_whichever_hypotheses_are_true():
    rng = np.random.default_rng(0)
    rounds = 4000
    for false in (0, 3):  # of five, that are easily told
        draws = rng.random((rounds, 5))
        draws[:, :false] *= 1e-6
        adjusted = np.array([stats.holm(p) for p in draws])
        wrong = (adjusted[:, false:] < 0.05).any(axis=1).mean()
        assert 0.03 < wrong < 0.06  # and wastes little: nearly all that it may
        assert (adjusted[:, :false] < 0.05).all()


@pytest.mark.parametrize("p", [[0.1, 1.1], [-0.1], [math.nan]])
def test_holm_refuses_what_is_no_probability(p: list[float]):
    with pytest.raises(ValueError, match="holm takes"):
        stats.holm(p)


def test_ties_are_ranked_as_ties():
    # One-sided differences of d images have p = 2^(1-d): 3 are not told apart, 10 are.
    labels, p_above, raw = stats.ranks([[hits_with(n)] for n in (150, 140, 137, 120)])
    assert labels == ["1", "2=", "2=", "4"]
    assert math.isnan(p_above[0])
    assert math.isnan(raw[0])
    assert raw[1:] == pytest.approx([2**-9, 0.25, 2**-16], rel=1e-9)
    assert p_above[1:] == pytest.approx([2 * 2**-9, 0.25, 3 * 2**-16], rel=1e-9)


def test_a_step_that_is_clear_among_two_is_a_tie_among_many():
    two = [[hits_with(n)] for n in (150, 143)]  # p = 2^-6
    assert stats.ranks(two).labels == ["1", "2"]
    assert stats.ranks([*two, *([hits_with(n)] for n in (140, 139, 138))]).labels[:2] == ["1=", "1="]


def test_a_chain_of_small_steps_does_not_tie_the_first_with_the_last():
    found = stats.ranks([[hits_with(n)] for n in (150, 146, 142, 138)])
    assert found.labels == ["1=", "1=", "3=", "3="]
    assert min(found.p_above[1:]) > 0.05


def test_methods_that_are_all_alike_are_rarely_ranked_apart():
    """The best and the worst of many lie far apart by chance: compared as if nobody had looked, they differ
    in many of these boards. The corrected comparison says so in few."""
    rng = np.random.default_rng(0)
    apart = as_if_two = 0
    rounds, methods = 150, 12
    for _ in range(rounds):
        ease = rng.beta(4, 1, size=300)
        board = sorted((Hits(rng.random(300) < ease) for _ in range(methods)), key=lambda one: -one.score)
        apart += set(stats.ranks([[one] for one in board]).labels) != {"1="}
        as_if_two += stats.difference_p(board[:1], board[-1:]) * (methods - 1) < 0.05
    assert apart / rounds < 0.05
    assert as_if_two / rounds > 0.08  # why neighbours' m - 1 is not enough for the ends of a run


def test_nothing_is_ranked_without_error():
    assert stats.ranks([]) == ([], [], [])
    assert stats.ranks([[hits_with(5)]]).labels == ["1"]
