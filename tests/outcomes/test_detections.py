"""Average precision against pycocotools: crowds, ties, empty images, classes that nothing belongs to."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.outcomes import Detections, unpack

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_MINI = Path(os.environ.get("MIMBENCH_DATA", "")) / "coco-mini" / "annotations/instances_val2017.json"


def box(rng: np.random.Generator) -> list[float]:
    x, y, w, h = *rng.uniform(0, 60, 2), *rng.lognormal(2.6, 0.8, 2)
    return [float(x), float(y), float(w), float(h)]


def scene(images: int, key: int, *, ties: bool, crowds: float = 0.15) -> tuple[dict[str, Any], list[dict]]:
    """A random data set and detections of it. Image ids do not rise; category 7 has no ground truth."""
    rng = np.random.default_rng(key)
    ids = rng.permutation(np.arange(10, 10 + 3 * images, 3)).tolist()
    categories = [3, 5, 7, 8]
    truths, found = [], []
    for image in ids:
        for category in categories:
            own = [] if category == 7 else [box(rng) for _ in range(rng.poisson(1.0))]
            for each in own:
                crowd = int(rng.random() < crowds)
                area = each[2] * each[3]
                truths.append(
                    {"id": len(truths) + 1, "image_id": image, "category_id": category, "bbox": each}
                    | {"area": area, "iscrowd": crowd}
                )
            for each in [*own, *(box(rng) for _ in range(rng.poisson(1.5)))]:
                shaken = [value + float(rng.normal(0, 1.5)) for value in each]
                score = float(rng.beta(2, 2))
                found.append(
                    {"image_id": image, "category_id": category, "score": round(score, 1) if ties else score}
                    | {"bbox": [*shaken[:2], max(shaken[2], 1.0), max(shaken[3], 1.0)]}
                )
    data = {
        "info": {},
        "images": [{"id": image, "width": 100, "height": 100} for image in ids],
        "categories": [{"id": category, "name": str(category)} for category in categories],
        "annotations": truths,
    }
    return data, found


def evaluated(data: dict[str, Any], found: list[dict], kind: str = "bbox") -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(found), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def detections(images: int = 30, key: int = 0, *, ties: bool = False) -> Detections:
    data, found = scene(images, key, ties=ties)
    return Detections.of_coco(evaluated(data, found), [image["id"] for image in data["images"]])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("key", range(6))
def test_the_headline_is_pycocotools(key, ties):
    data, found = scene(25, key, ties=ties)
    evaluator = evaluated(data, found)
    ours = Detections.of_coco(evaluator, [image["id"] for image in data["images"]])
    assert 0.05 < evaluator.stats[0] < 0.9
    assert ours.score == pytest.approx(evaluator.stats[0], abs=1e-12)
    assert ours.ignored.any()
    again = unpack(json.loads(json.dumps(ours.pack())))
    assert isinstance(again, Detections)
    assert again.score == ours.score
    weights = np.random.default_rng(0).integers(0, 3, size=(4, ours.n))
    assert again.value(weights).tolist() == ours.value(weights).tolist()


def test_only_the_hundred_best_of_an_image_count():
    data, _ = scene(3, 0, ties=False)
    rng = np.random.default_rng(1)
    found = [
        {"image_id": t["image_id"], "category_id": t["category_id"], "bbox": t["bbox"], "score": 1 - i / 999}
        for t in data["annotations"]
        for i in sorted(rng.choice(400, 150, replace=False))
    ]
    evaluator = evaluated(data, found)
    ours = Detections.of_coco(evaluator, [image["id"] for image in data["images"]])
    assert ours.score == pytest.approx(evaluator.stats[0], abs=1e-12)
    assert np.bincount(ours.images * 4 + ours.classes).max() == 100


def test_recalls_that_meet_a_reading_point_are_read_as_pycocotools_reads_them():
    """With 1 to 100 objects, recalls fall on the 101 readings, where rounding decides."""
    for count in (1, 3, 7, 20, 29, 50, 58, 100):
        boxes = [[10.0 * i, 0.0, 8.0, 8.0] for i in range(count)]
        data, _ = scene(1, 0, ties=False)
        data["images"], image = data["images"][:1], data["images"][0]["id"]
        given = {"image_id": image, "category_id": 3}
        data["annotations"] = [
            {"id": i + 1, "bbox": b, "area": 64.0, "iscrowd": 0} | given for i, b in enumerate(boxes)
        ]
        found = [{"bbox": b, "score": 1 - i / 200} | given for i, b in enumerate(boxes)]
        found += [{"bbox": [-50.0, 0, 8, 8], "score": 1 - i / 41} | given for i in range(40)]
        evaluator = evaluated(data, found)
        score = Detections.of_coco(evaluator, [image]).score
        assert score == pytest.approx(evaluator.stats[0], abs=1e-12), count


def test_an_image_that_counts_twice_is_as_good_as_two():
    data, found = scene(20, 3, ties=False)
    ids = [image["id"] for image in data["images"]]
    weights = np.random.default_rng(2).integers(0, 3, size=(3, 20))
    values = Detections.of_coco(evaluated(data, found), ids).value(weights)
    for row, value in zip(weights, values, strict=True):
        copies = [
            (image, 1000 * (c + 1) + image) for image, n in zip(ids, row, strict=True) for c in range(n)
        ]

        def copied(entries: list[dict], copies=copies) -> list[dict]:
            return [{**e, "image_id": new} for old, new in copies for e in entries if e["image_id"] == old]

        repeated = {**data, "images": [{"id": new, "width": 100, "height": 100} for _, new in copies]}
        truths = copied(data["annotations"])
        repeated["annotations"] = [{**truth, "id": i + 1} for i, truth in enumerate(truths)]
        expected = evaluated(repeated, copied(found)).stats[0]
        assert value == pytest.approx(expected, abs=1e-12)


def test_fractions_of_an_image_count_as_such():
    ours = detections()
    weights = np.random.default_rng(0).integers(0, 4, size=(5, ours.n))
    np.testing.assert_allclose(ours.value(weights), ours.value(weights * 0.25), rtol=1e-12)
    np.testing.assert_allclose(ours.value(weights), ours.value(weights.astype(np.int8)), rtol=1e-12)


def test_blocks_give_what_one_go_gives(monkeypatch):
    ours = detections()
    weights = np.random.default_rng(0).integers(0, 3, size=(7, ours.n))
    whole = ours.value(weights)
    monkeypatch.setattr("mimbench.outcomes.detections.ELEMENTS", 100)
    np.testing.assert_allclose(ours.value(weights), whole, rtol=1e-12)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined():
    data, found = scene(4, 0, ties=False)
    ids = [image["id"] for image in data["images"]]
    some = Detections.of_coco(evaluated(data, found), ids)
    blind = Detections.of_coco(evaluated(data, found[-1:]), ids)
    assert blind.score == 0
    assert np.isnan(some.value(np.zeros((1, 4)))).all()


def test_other_images_than_those_evaluated_are_refused():
    data, found = scene(4, 0, ties=False)
    with pytest.raises(ValueError, match="3 test images, but 4 evaluated"):
        Detections.of_coco(evaluated(data, found), [image["id"] for image in data["images"]][:3])


def test_a_score_that_is_not_finite_is_refused():
    data, found = scene(4, 0, ties=False)
    found[0]["score"] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Detections.of_coco(evaluated(data, found), [image["id"] for image in data["images"]])


@pytest.mark.parametrize("name", ["images", "detections_a_class", "matched", "ignored", "truths"])
def test_damaged_detections_are_refused(name):
    packed = detections().pack()
    with pytest.raises(ValueError, match=r"damaged|do not fit"):
        unpack({**packed, name: detections(images=9).pack()[name]})
    del packed[name]
    with pytest.raises(ValueError, match="damaged"):
        unpack(packed)


@pytest.mark.skipif(not COCO_MINI.is_file(), reason="no coco-mini below MIMBENCH_DATA")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_on_photographs_the_headline_is_pycocotools(kind):
    rng = np.random.default_rng(0)
    data = json.loads(COCO_MINI.read_text())
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(COCO_MINI)
    for each in data["annotations"]:
        for score, chance in ((rng.beta(4, 2), 0.8), (rng.beta(2, 4), 0.5)):
            if rng.random() > chance:
                continue
            given = {"image_id": each["image_id"], "category_id": each["category_id"]}
            if kind == "bbox":
                size = np.array(each["bbox"][2:])
                moved = np.array(each["bbox"]) + rng.normal(0, 0.08, 4) * np.tile(size, 2)
                shape = {"bbox": [*moved[:2].tolist(), *np.maximum(moved[2:], 1).tolist()]}
            else:
                shape = {"segmentation": truth.annToRLE(each)}
            found.append(given | shape | {"score": round(float(score), 2)})
    evaluator = evaluated(data, found, kind)
    ours = Detections.of_coco(evaluator, [image["id"] for image in data["images"]])
    assert 0.1 < evaluator.stats[0] < 0.95
    assert ours.score == pytest.approx(evaluator.stats[0], abs=1e-12)
