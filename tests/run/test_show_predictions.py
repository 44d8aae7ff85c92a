"""Predictions that evaluations kept are drawn beside the annotations."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import mimbench
from mimbench.data import open_dataset
from mimbench.show import show
from mimbench.show.panels import Box
from mimbench.show.predictions import _boxes, sheets
from mimbench.show.rows import find_row
from tests.dense_data import write_ade20k

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("segmented")
    shapes = write_ade20k(folder / "shapes", train=12, validation=4, size=(24, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(request.getfixturevalue("cache")))
        result = mimbench.run(
            "mae,random", protocol="segknn", data=["digits", f"ade20k:{shapes}"], images=64, batch_size=32,
            precision="fp32", baselines=False, set={"segknn.k": [1]}, out=folder / "results",
        )  # fmt: skip
    assert result.ok
    return folder / "results", f"ade20k:{shapes}"


def test_label_maps_stand_beside_the_annotation(segmented, tmp_path):
    results, spec = segmented
    shown = show("mae,random", "segmentation", ["digits", spec], out=results, images=3, to=tmp_path)
    (path,) = shown.files
    assert path.name == "segknn-ade20k-shapes-mae-random.png"
    assert np.asarray(Image.open(path)).std() > 10

    data = open_dataset(spec)
    rows = [find_row(results, name, 0) for name in ("mae", "random")]
    (sheet,) = sheets("segmentation", rows, [data], 3)
    assert sheet.headings == ("test image", "annotation", "mae", "random")
    split = data.open_test()
    colours = dict(sheet.legend)
    for place, (image, truth, *said) in enumerate(sheet.rows):
        np.testing.assert_array_equal(image.image, split.image(place))
        target = split.target(place)
        for label, name in enumerate(data.classes):
            here = target == label
            if here.any():
                expected = [int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]
                assert (truth.image[here] == expected).all()
        known = target < len(data.classes)
        for panel in said:
            share = (panel.image == truth.image).all(-1)[known].mean()
            assert panel.caption == f"{share:.0%} of pixels right"


def test_other_rows_and_other_data_are_told(segmented, tmp_path):
    results, spec = segmented
    with pytest.raises(mimbench.UserError, match="none of the data is for detection"):
        show("mae", "detection", spec, out=results, to=tmp_path)
    other = write_ade20k(tmp_path / "others", train=12, validation=4, size=(24, 32), seed=7)
    with pytest.raises(mimbench.UserError, match=r"no segmentation protocol was evaluated for mae.*run one"):
        show("mae", "segmentation", f"ade20k:{other}", out=results, to=tmp_path)


def test_boxes_are_named_by_class_and_score():
    boxes = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    truth = _boxes(boxes, np.array([1, 0]), None, ("cat", "dog"))
    assert truth[0] == Box(1, 2, 3, 4, "dog")
    said = _boxes(boxes, np.array([1, 0]), np.array([0.9, 0.456]), ("cat", "dog"))
    assert [box.label for box in said] == ["dog 0.90", "cat 0.46"]
    assert said[0].colour != truth[0].colour
