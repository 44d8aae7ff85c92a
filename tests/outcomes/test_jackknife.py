"""Intervals that cover as often as they say, and paired tests that err as seldom as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from mimbench import jackknife, stats
from mimbench.outcomes import Detections, Hits, Outcomes, Overlaps, Values


def overlaps(images: int, rng: np.random.Generator, classes: int = 20) -> Overlaps:
    """Classes from common to rare, images from easy to hard, false alarms in few classes of an image."""
    rank = np.arange(1, classes + 1)
    areas = np.where(rng.random((images, classes)) < 0.8 * np.minimum(1, 6 / rank), 1.0, 0)
    areas *= rng.lognormal(6, 1.2, areas.shape)
    ease = 1 - rank / classes + rng.normal(0, 0.8, (images, 1)) + rng.normal(0, 1, areas.shape)
    inner = areas / (1 + np.exp(-ease))
    wrong = (areas - inner).sum(axis=1, keepdims=True) * rng.dirichlet(np.full(classes, 0.3), images)
    return Overlaps(inner.astype(int), np.maximum(areas + wrong, inner).astype(int))


def detections(images: int, rng: np.random.Generator, classes: int = 4) -> Detections:
    """Objects found or not by their quality, at three thresholds, among false alarms of lower scores."""
    truths = np.stack([rng.poisson(2 / c, images) for c in range(1, classes + 1)], axis=1)
    parts = []
    for c in range(classes):
        of = np.repeat(np.arange(images), truths[:, c])
        of = of[rng.random(len(of)) < 0.85]
        quality = rng.normal(0.6 - 0.1 * c, 0.8, len(of)) + rng.normal(0, 0.5, images)[of]
        alarms = np.repeat(np.arange(images), rng.poisson(4, images))
        scores = np.append(quality + rng.normal(0, 0.7, len(of)), rng.normal(-1.2, 1, len(alarms)))
        matched = np.zeros((len(scores), 3), bool)
        matched[: len(of)] = quality[:, None] > [-0.3, 0.4, 1.1]
        parts.append((np.append(of, alarms), np.full(len(scores), c), scores, matched))
    of, labels, scores, matched = map(np.concatenate, zip(*parts, strict=True))
    best = np.lexsort((-scores, labels))
    none = np.zeros_like(matched)
    return Detections(of[best], labels[best], matched[best], none, truths)


@pytest.mark.parametrize(("draw", "images"), [(overlaps, 60), (overlaps, 250), (detections, 60)])
def test_intervals_cover_what_a_benchmark_of_this_size_gives_on_average(draw, images):
    rng = np.random.default_rng(1)
    average = np.mean([draw(images, rng).score for _ in range(500)])
    ends = np.array([stats.interval([draw(images, rng)]) for _ in range(300)])
    below, above = (average < ends[:, 0]).mean(), (average > ends[:, 1]).mean()
    assert 0.92 <= 1 - below - above <= 0.99
    assert max(below, above) <= 0.05


def test_a_bootstrap_would_cover_less_where_classes_are_rare():
    """The reason for the jackknife: a resample holds 63 % of the images, and empties rare classes."""
    images, classes = 150, 120
    rng = np.random.default_rng(2)
    average = np.mean([overlaps(images, rng, classes).score for _ in range(300)])
    draws = rng.multinomial(images, np.full(images, 1 / images), size=300)
    missed = np.zeros(2)
    for _ in range(120):
        found = overlaps(images, rng, classes)
        percentile = np.quantile(found.value(draws), [0.025, 0.975])
        for i, (low, high) in enumerate((percentile, stats.interval([found]))):
            missed[i] += not low <= average <= high
    assert missed[0] / 120 > 0.12
    assert missed[1] / 120 < 0.08


def test_on_hits_the_jackknife_is_wilsons_interval_roughly():
    for accuracy, images in ((0.6, 1000), (0.9, 1000), (0.3, 400)):
        hits = Hits(np.random.default_rng(0).permutation(images) < accuracy * images)
        found = jackknife.share_interval([hits], 0.95)
        assert found == pytest.approx(stats.interval([hits]), abs=0.01)


def test_the_bootstrap_of_hits_is_wilsons_interval_roughly():
    rng = np.random.default_rng(0)
    hits = Hits(rng.permutation(1000) < 700)
    values = hits.value(rng.multinomial(1000, np.full(1000, 1e-3), size=4000))
    assert np.quantile(values, [0.025, 0.975]) == pytest.approx(stats.interval([hits]), abs=0.003)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(3, 2, size=(2, 40))
    expected = ttest_1samp(values.mean(axis=0), 0).confidence_interval(0.95)
    assert stats.interval([Values(v) for v in values]) == pytest.approx((expected.low, expected.high))
    assert all(map(math.isnan, stats.interval([Values(np.array([0.5]))])))


def test_seeds_that_err_alike_do_not_narrow_the_interval():
    one = overlaps(80, np.random.default_rng(0))
    assert stats.interval([one] * 3) == pytest.approx(stats.interval([one]))
    other = overlaps(80, np.random.default_rng(5))
    low, high = stats.interval([one, other])
    assert low < (one.score + other.score) / 2 < high


def test_intervals_stay_within_what_a_share_can_be_and_say_nothing_where_nothing_moves():
    unions = np.full((30, 2), 100)
    inner = unions.copy()
    inner[0, 0] = 99
    low, high = stats.interval([Overlaps(inner, unions)])
    assert 0.99 < low < high <= 1
    for nothing in (Overlaps(unions, unions), Overlaps(0 * unions, unions), Overlaps(unions[:1], unions[:1])):
        assert all(map(math.isnan, stats.interval([nothing])))


def test_the_same_records_give_the_same_numbers_again():
    one, other = (overlaps(50, np.random.default_rng(key)) for key in (0, 1))
    assert stats.interval([one]) == stats.interval([one])
    assert stats.difference_p([one], [other]) == stats.difference_p([one], [other])


def worse(of: Overlaps, rng: np.random.Generator, loss: float) -> Overlaps:
    """The same images by a method that errs in other places, and a little more."""
    keep = np.clip(rng.normal(1 - loss, 0.15, of.unions.shape), 0, 1)
    return Overlaps((of.intersections * keep).astype(int), of.unions)


def swap_p(a: Overlaps, b: Overlaps, rng: np.random.Generator, draws: int = 400) -> float:
    """What random swaps of the two methods' images say: the other way to test such a difference."""
    extreme = 0
    for stay in rng.integers(0, 2, size=(draws, a.n, 1)).astype(bool):
        sides = [
            Overlaps(
                np.where(kept, a.intersections, b.intersections), np.where(kept, a.unions, b.unions)
            ).score
            for kept in (stay, ~stay)
        ]
        extreme += abs(sides[0] - sides[1]) >= abs(a.score - b.score) - 1e-12
    return (extreme + 1) / (draws + 1)


def test_alike_methods_are_told_apart_as_seldom_as_the_level_says():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        truth = overlaps(40, rng, classes=8)
        found.append(stats.difference_p([worse(truth, rng, 0.1)], [worse(truth, rng, 0.1)]))
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.07
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_the_paired_test_says_what_random_swaps_say():
    rng = np.random.default_rng(1)
    pairs = []
    for loss in (0.1, 0.11, 0.12, 0.13, 0.14, 0.16) * 3:
        truth = overlaps(80, rng)
        a, b = worse(truth, rng, 0.1), worse(truth, rng, loss)
        pairs.append((stats.difference_p([a], [b]), swap_p(a, b, rng)))
        assert pairs[-1][0] == stats.difference_p([b], [a])
    ours, swapped = np.array(pairs).T
    assert np.abs(ours - swapped).max() < 0.15
    assert abs((ours - swapped).mean()) < 0.03
    assert ((ours < 0.05) == (swapped < 0.05)).mean() > 0.8


def test_a_real_difference_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    truth = overlaps(80, rng)
    a = [worse(truth, rng, 0.1) for _ in range(2)]
    assert stats.difference_p(a, [worse(truth, rng, 0.3)]) < 1e-6
    assert stats.difference_p([truth], [truth, truth]) == 1.0


def test_few_images_never_say_more_than_flips_of_as_many_signs_could():
    unions = np.full((4, 2), 1000)
    for kind in (Overlaps(unions - 1, unions), Values(np.full(4, 0.999))):
        other = Overlaps(unions - 100, unions) if isinstance(kind, Overlaps) else Values(np.full(4, 0.9))
        assert stats.difference_p([kind], [other]) == 2**-3
    single = [Overlaps(unions[:1] - drop, unions[:1]) for drop in (1, 100)]
    assert stats.difference_p(single[:1], single[1:]) == 1.0


def test_on_hits_the_paired_test_is_mcnemars_roughly():
    for key, apart in ((0, 0.0), (1, 0.03), (2, 0.06)):
        rng = np.random.default_rng(key)
        ease = rng.random(1000)
        a, b = (Hits(rng.random(1000) < 0.2 + 0.6 * ease + d) for d in (0, apart))
        exact = stats.difference_p([a], [b])
        assert jackknife.difference_p([a], [b]) == pytest.approx(exact, abs=max(0.02, exact / 4))


def test_the_paired_test_of_means_is_students():
    a, b = np.random.default_rng(0).normal(3, 2, size=(2, 40))
    found = stats.difference_p([Values(a)], [Values(b - 0.5)])
    assert found == pytest.approx(ttest_rel(a, b - 0.5).pvalue, rel=1e-9)
    assert stats.difference_p([Values(a)], [Values(a), Values(a)]) == 1.0


def test_detections_of_two_methods_are_compared_on_the_same_images():
    rng = np.random.default_rng(3)
    good = detections(60, rng)
    poor = Detections(good.images, good.classes, good.matched[::-1], good.ignored, good.truths)
    assert stats.difference_p([good], [poor]) < 0.05
    with pytest.raises(ValueError, match="same images, got 60 and 61"):
        stats.difference_p([good], [detections(61, rng)])


def test_ranks_compare_any_kind():
    rng = np.random.default_rng(0)
    truth = overlaps(80, rng)
    methods: list[list[Outcomes]] = [[worse(truth, rng, loss)] for loss in (0.1, 0.1, 0.4)]
    methods.sort(key=lambda each: -each[0].score)
    assert stats.ranks(methods)[0] == ["1=", "1=", "3"]
