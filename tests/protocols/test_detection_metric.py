"""COCO's metric as the protocol computes it, against pycocotools fed with files as anybody would."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="the extra 'dense' is not installed")

from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.data import open_dataset
from mimbench.outcomes import Detections
from protocols.parts.coco_metric import NAMES, Judge, figures
from tests.dense_data import write_coco

pytest.importorskip("mmdet", reason="the extra 'dense' is not installed")

from protocols.parts.marked import Found, bitmap


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Large and small objects, crowds, images without any, ids with gaps; and the test part's file."""
    folder = tmp_path_factory.mktemp("shapes")
    root = write_coco(folder / "set", train=12, validation=14, crowd=True, size=(180, 240))
    data = open_dataset(f"coco:{root}", cache=folder / "cache")
    return data, root / "annotations" / "instances_val2017.json"


def truth(split) -> list[Found]:
    """What is marked, crowds left out, as if it had been found."""
    found = []
    for i in range(len(split)):
        target = split.target(i)
        keep = np.flatnonzero(~target.crowd)
        masks = [
            rle.encode(np.asfortranarray(bitmap(target.masks[j], target.height, target.width))) for j in keep
        ]
        found.append(Found(target.boxes[keep], np.full(len(keep), 0.9), target.labels[keep], masks))
    return found


def guesses(split, seed: int = 0) -> list[Found]:
    """The truth, shifted and cut, with objects lost and invented and scores that repeat."""
    draw = np.random.default_rng(seed)
    found = []
    for i, one in enumerate(truth(split)):
        target = split.target(i)
        chosen = (
            draw.choice(len(one.boxes), draw.integers(0, 3 * len(one.boxes) + 1)) if len(one.boxes) else []
        )
        boxes = one.boxes[chosen] + draw.normal(0, 4, (len(chosen), 4)) if len(chosen) else np.zeros((0, 4))
        boxes[:, 2:] = boxes[:, 2:].clip(1)
        labels = (
            np.where(draw.random(len(chosen)) < 0.8, one.labels[chosen], 0)
            if len(chosen)
            else np.zeros(0, int)
        )
        masks = []
        for j in chosen:
            area = rle.decode(one.masks[j])
            area = np.roll(area, draw.integers(-6, 7, 2), (0, 1))
            assert area.shape == (target.height, target.width)
            masks.append(rle.encode(np.asfortranarray(area)))
        found.append(Found(boxes, draw.integers(1, 6, len(chosen)) / 8, labels.astype(np.int64), masks))
    return found


def test_ground_truth_given_back_is_found_whole(shapes):
    data, _ = shapes
    split = data.open_test()
    judge = Judge(split, data.category_ids)
    for what, prefix in (("bbox", "box"), ("segm", "mask")):
        evaluator = judge.evaluate(truth(split), what)
        measured = figures(evaluator, prefix)
        assert set(measured) >= {f"{prefix}_ap", f"{prefix}_ap50", f"{prefix}_ap_medium"}
        assert set(measured.values()) == {1.0}
        assert Detections.of_coco(evaluator, judge.image_ids).score == 1.0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("what", ["bbox", "segm"])
def test_figures_are_pycocotools_own_on_files(shapes, tmp_path, what, seed):
    data, annotations = shapes
    split = data.open_test()
    found = guesses(split, seed)
    judge = Judge(split, data.category_ids)
    evaluator = judge.evaluate(found, what)

    results = []
    for i, one in enumerate(found):
        for box, score, label, mask in zip(one.boxes, one.scores, one.labels, one.masks, strict=True):
            entry = {
                "image_id": split.target(i).image_id,
                "category_id": data.category_ids[label],
                "score": float(score),
            }
            entry |= (
                {"bbox": box.tolist()}
                if what == "bbox"
                else {"segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}}
            )
            results.append(entry)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(annotations)
        official = COCOeval(reference, reference.loadRes(str(path)), what)
        official.evaluate()
        official.accumulate()
        official.summarize()
    assert 0 < official.stats[0] < 0.9
    np.testing.assert_array_equal(evaluator.stats, official.stats)
    expected = dict(zip(NAMES, official.stats[:6].tolist(), strict=True))
    assert figures(evaluator, "x") == {f"x_{k}": v for k, v in expected.items() if v >= 0}
    outcomes = Detections.of_coco(evaluator, judge.image_ids)
    assert outcomes.n == len(split)
    assert outcomes.score == pytest.approx(official.stats[0], abs=1e-12)


def test_nothing_found_is_an_ap_of_zero(shapes):
    data, _ = shapes
    split = data.open_test()
    judge = Judge(split, data.category_ids)
    none = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), [])
    evaluator = judge.evaluate([none] * len(split), "bbox")
    assert figures(evaluator, "box")["box_ap"] == 0.0
    assert Detections.of_coco(evaluator, judge.image_ids).score == 0.0
    with pytest.raises(ValueError, match="detections of 1 images"):
        judge.evaluate([none], "bbox")


def test_judging_prints_nothing(shapes, capfd):
    data, _ = shapes
    split = data.open_test()
    Judge(split, data.category_ids).evaluate(truth(split), "segm")
    assert tuple(capfd.readouterr()) == ("", "")
