"""On real photographs: runs where MIMBENCH_DATA names a folder that holds imagenette128."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mimbench.data import check, evaluation_batches, open_dataset

FOLDER = Path(os.environ.get("MIMBENCH_DATA", "")) / "imagenette128"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MIMBENCH_DATA"), reason="MIMBENCH_DATA is not set"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("imagenette")


@pytest.fixture
def data(cache):
    return open_dataset(f"parquet:{FOLDER}", image_size=128, cache=cache)


def test_official_split_sizes_and_names(data):
    assert data.name == "parquet:imagenette128"
    assert data.classes[:2] == ("tench", "English springer")
    assert (len(data.train), len(data.validation), data.test_size) == (8522, 947, 3925)
    counts = np.bincount(data.open_test().labels)
    assert (counts.min(), counts.max()) == (357, 419)
    assert data.train.storage == "prepared"


def test_splits_never_move(data):
    # Every number measured on this set rests on them.
    assert data.fingerprint == "0176f9e2dfecd8aa85d6d261f9808a2c14a596649b4815d0ee93487e74c188c8"


def test_stored_photographs_are_the_decoded_ones(data):
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(FOLDER / "val.parquet", columns=["image"])["image"]
    test = data.open_test()
    for index in range(0, len(test), 391):
        original = np.array(Image.open(io.BytesIO(table[index]["bytes"].as_py())))
        assert np.array_equal(test.image(index), original)


def test_a_second_opening_checks_and_decodes_nothing(cache, data):
    stages = []
    again = open_dataset(f"parquet:{FOLDER}", image_size=128, cache=cache, report=stages.append)
    assert stages == []
    assert again.fingerprint == data.fingerprint


def test_no_copies_and_nothing_broken(cache, data):
    report = check(f"parquet:{FOLDER}", cache=cache)
    assert report.ok
    assert report.warnings == ()
    assert not any(report.duplicates.values())
    assert report.common_sizes == {"128 x 128": 13394}


def test_labels_belong_to_their_images(data):
    # 8 x 8 pixels and the nearest class mean: weak, but far above the largest class (0.107).
    from sklearn.neighbors import NearestCentroid

    def vectors(split, count):
        batches = evaluation_batches(split, image_size=8, crop_pct=1.0, batch_size=500)
        x = np.concatenate([images.flatten(1).numpy() for _, images in batches])
        return x[:count], split.labels[:count]

    model = NearestCentroid().fit(*vectors(data.train, 8522))
    assert model.score(*vectors(data.open_test(), 3925)) > 0.2
