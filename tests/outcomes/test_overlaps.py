"""Mean IoU against mmsegmentation, and against images that are repeated instead of weighted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mimbench.outcomes import Overlaps, unpack

IGNORE = 255


def maps(images: int, classes: int, key: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocky annotations, each image with a few of the classes, and predictions that err on some blocks."""
    rng = np.random.default_rng(key)
    pairs = []
    for _ in range(images):
        there = rng.choice(classes, size=3)
        true = np.kron(rng.choice(there, size=(6, 5)), np.ones((4, 4), np.uint8)).astype(np.uint8)
        said = np.where(rng.random(true.shape) < 0.3, rng.integers(0, classes, true.shape), true)
        true[rng.random(true.shape) < 0.1] = IGNORE
        pairs.append((said.astype(np.uint8), true))
    return pairs


def overlaps(images: int = 12, classes: int = 9, key: int = 0) -> Overlaps:
    return Overlaps.of_maps(maps(images, classes, key), classes, IGNORE)


def test_the_headline_is_mmsegmentations():
    torch = pytest.importorskip("torch")
    mmseg = pytest.importorskip("mmseg.evaluation.metrics.iou_metric")
    # Class 9 is only ever predicted, which mmsegmentation counts as 0; class 10 is nowhere, and left out.
    pairs = [(np.where(said == true, said, 9 * (said % 2)), true) for said, true in maps(12, 9)]
    areas = [
        mmseg.IoUMetric.intersect_and_union(torch.tensor(said), torch.tensor(true), 11, IGNORE)
        for said, true in pairs
    ]
    sums = [sum(area[i] for area in areas) for i in range(4)]
    ious = mmseg.IoUMetric.total_area_to_metrics(*sums, metrics=["mIoU"])["IoU"]
    found = Overlaps.of_maps(pairs, 11, IGNORE)
    np.testing.assert_allclose(found.per_class()[0], ious, rtol=1e-6)
    assert np.isnan(ious[10])
    assert ious[9] == 0
    assert found.score == pytest.approx(np.nanmean(ious), abs=1e-6)


def test_an_image_that_counts_twice_is_as_good_as_two():
    pairs = maps(8, 9)
    weights = np.random.default_rng(1).integers(0, 3, size=(3, 8))
    repeated = [
        Overlaps.of_maps([p for p, count in zip(pairs, row, strict=True) for _ in range(count)], 9, IGNORE)
        for row in weights
    ]
    found = Overlaps.of_maps(pairs, 9, IGNORE).value(weights)
    np.testing.assert_allclose(found, [other.score for other in repeated], rtol=1e-12)


def test_every_pixel_survives_packing_and_two_thousand_images_stay_small():
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 250_000, size=(2000, 150)) * (rng.random((2000, 150)) < 15 / 150)
    given = Overlaps((unions * rng.random((2000, 150))).astype(np.int64), unions)
    text = json.dumps(given.pack())
    assert len(text) < 350_000
    again = unpack(json.loads(text))
    assert isinstance(again, Overlaps)
    np.testing.assert_array_equal(again.intersections, given.intersections)
    np.testing.assert_array_equal(again.unions, given.unions)


def test_images_without_any_class_have_no_score():
    assert np.isnan(Overlaps(np.zeros((2, 3), int), np.zeros((2, 3), int)).score)


def test_maps_that_do_not_fit_are_refused():
    good = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="a prediction"):
        Overlaps.of_maps([(good[:2], good)], 3, IGNORE)
    for bad in ((good + 3, good), (good, good + 3)):
        with pytest.raises(ValueError, match="classes 3 to 3 in a map of 3"):
            Overlaps.of_maps([bad], 3, IGNORE)


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), "integers"),
        (np.ones((2, 3), int), np.ones((2, 2), int), "integers"),
        (np.full((1, 1), 3), np.full((1, 1), 2), "between"),
        (np.full((1, 1), -1), np.full((1, 1), 2), "between"),
    ],
)
def test_areas_that_cannot_be_are_refused(inner, outer, message):
    with pytest.raises(ValueError, match=message):
        Overlaps(inner, outer)


@pytest.mark.parametrize("name", ["shape", "classes_an_image", "classes", "intersections", "unions"])
def test_damaged_areas_are_refused(name):
    packed = overlaps().pack()
    with pytest.raises(ValueError, match="damaged"):
        unpack({**packed, name: overlaps(images=11, key=5).pack()[name] if name != "shape" else [1]})
    del packed[name]
    with pytest.raises(ValueError, match="damaged"):
        unpack(packed)
