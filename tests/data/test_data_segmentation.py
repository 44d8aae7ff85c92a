from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mimbench
from mimbench.data import check, open_dataset, training_batches
from mimbench.data.images import BrokenImageError, decode_numbers
from mimbench.data.targets import LabelDecoder
from mimbench.errors import UserError
from mimbench.records import read_folder
from mimbench.spec import Augmentation
from tests.dense_data import write_ade20k

SHARED = os.environ.get("MIMBENCH_DATA")


@pytest.fixture
def shapes(tmp_path):
    return write_ade20k(tmp_path / "shapes", suffix=".png")


def refused(root: Path, *words: str) -> None:
    """Opening is refused by one sentence that holds all ``words``."""
    with pytest.raises(UserError) as caught:
        open_dataset(f"ade20k:{root}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def png(numbers: list[list[int]] | np.ndarray, kind: type = np.uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(numbers, kind)).save(buffer, "PNG")
    return buffer.getvalue()


def all_splits(data):
    return [data.train, data.validation, data.open_test()]


def by_hand(root: Path, image: str) -> np.ndarray:
    """The map of an image as a reader who knows the rule would take it: 0 is no class, k is k - 1."""
    raw = np.array(Image.open((root / image.replace("images", "annotations")).with_suffix(".png"))).astype(
        int
    )
    return np.where((raw == 0) | (raw == 255), 255, raw - 1)


def first_map(root: Path) -> Path:
    return sorted((root / "annotations/training").iterdir())[0]


def first_map_changed(root: Path, change) -> Path:
    path = first_map(root)
    labels = np.array(Image.open(path))
    change(labels)
    Image.fromarray(labels).save(path)
    return path


# label zero


@pytest.mark.parametrize("classes", [2, 150, 254])
def test_label_zero_is_reduced_exactly_once(classes):
    target = LabelDecoder(classes)(png([[0, 1], [classes, 255]]))
    assert target.dtype == np.uint8
    assert target.tolist() == [[255, 0], [classes - 1, 255]]


def test_a_set_on_disk_is_reduced_exactly_once(tmp_path):
    root = tmp_path / "four"
    for part in ("training", "validation"):
        for below in ("images", "annotations"):
            (root / below / part).mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(number + len(part)).integers(0, 256, (2, 2, 3), np.uint8)
            Image.fromarray(noise).save(root / f"images/{part}/{number}.png")
            (root / f"annotations/{part}/{number}.png").write_bytes(png([[0, 1], [3, 255]]))
    (root / "classes.txt").write_text("wall\nsky\ntree\n")
    for split in all_splits(open_dataset(f"ade20k:{root}")):
        for i in range(len(split)):
            assert split.target(i).tolist() == [[255, 0], [2, 255]]


def test_label_zero_can_be_a_class():
    decode = LabelDecoder(3, first=0)
    assert decode(png([[0, 1], [2, 255]])).tolist() == [[0, 1], [2, 255]]
    with pytest.raises(BrokenImageError, match="label 3, but its 3 classes are 0 to 2"):
        decode(png([[0, 3]]))


def test_sets_with_and_without_reduction_say_the_same(tmp_path):
    reduced = write_ade20k(tmp_path / "reduced", reduce_zero_label=True)
    plain = write_ade20k(tmp_path / "plain", reduce_zero_label=False)
    one, other = open_dataset(f"ade20k:{reduced}"), open_dataset(f"ade20k:{plain}")
    for i in range(len(one.train)):
        assert np.array_equal(one.train.target(i), other.train.target(i))


@pytest.mark.parametrize("classes", [255, 300])
def test_more_classes_than_eight_bits_hold_use_sixteen(classes):
    decode = LabelDecoder(classes)
    target = decode(png([[0, 1], [classes, 255]], np.uint16))
    assert target.dtype == np.uint16
    assert target.tolist() == [[65535, 0], [classes - 1, 254]]  # 255 is a class then


def test_further_ignored_labels(tmp_path):
    decode = LabelDecoder(3, first=0, ignored=(7,))
    assert decode(png([[0, 7], [2, 255]])).tolist() == [[0, 255], [2, 255]]


def test_a_decoder_travels_to_another_process_without_its_tables():
    decode = LabelDecoder(150)
    decode(png([[1]]))
    packed = pickle.dumps(decode)
    assert len(packed) < 500
    assert pickle.loads(packed) == decode


# PNGs


def grey_png(rows: list[list[int]], depth: int) -> bytes:
    """A grey PNG of ``depth`` bits a pixel, written by the specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
        lines += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_labels_are_numbers_whatever_the_depth_of_the_png(depth):
    values = [0, 1, 2**depth - 1, 1, 0]
    assert decode_numbers(grey_png([values], depth)).tolist() == [values]


def test_labels_of_a_palette_are_its_indices_not_its_colours():
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "P"
    raw = np.array(Image.open(io.BytesIO(buffer.getvalue())))
    assert decode_numbers(buffer.getvalue()).tolist() == raw.tolist() == [[0, 1], [2, 3]]


def test_coloured_and_lossy_label_maps_are_refused():
    for mode, format, words in (("RGB", "PNG", "one number a pixel"), ("L", "JPEG", "label maps are PNG")):
        buffer = io.BytesIO()
        Image.new(mode, (4, 4)).save(buffer, format)
        with pytest.raises(BrokenImageError, match=words):
            decode_numbers(buffer.getvalue())


# layout


def test_each_image_keeps_its_own_map_at_full_resolution(shapes):
    data = open_dataset(f"ade20k:{shapes}", image_size=16)  # far below the images' 48 x 64
    assert data.task == "segmentation"
    assert data.classes == ("background", "disc 0", "square 1")
    assert data.describe()["sizes"] == {"train": 11, "validation": 1, "test": 6}
    seen = set()
    for split in all_splits(data):
        assert split.labels is None
        for i in range(len(split)):
            name = split.sample_id(i)
            seen.add(name)
            image = np.array(Image.open(shapes / name))
            assert np.array_equal(split.image(i), image)
            assert np.array_equal(split.target(i), by_hand(shapes, name))
    assert len(seen) == 18
    assert all(data.open_test().sample_id(i).startswith("images/validation/") for i in range(6))


def test_a_given_test_part_is_the_test(tmp_path):
    data = open_dataset(f"ade20k:{write_ade20k(tmp_path / 'shapes', test=4)}")
    assert data.describe()["sizes"] == {"train": 12, "validation": 6, "test": 4}
    shutil.rmtree(tmp_path / "shapes/annotations/test")
    data = open_dataset(f"ade20k:{tmp_path / 'shapes'}")
    assert data.describe()["sizes"] == {"train": 11, "validation": 1, "test": 6}
    assert data.describe()["notes"] == ["the test part has no annotations and was left out"]


def test_other_names_of_the_folders(shapes):
    before = open_dataset(f"ade20k:{shapes}").fingerprint
    for below in ("images", "annotations"):
        (shapes / below / "training").rename(shapes / below / "train")
        (shapes / below / "validation").rename(shapes / below / "val")
    assert open_dataset(f"ade20k:{shapes}").fingerprint == before


def test_a_folder_without_parts_is_divided_by_content(shapes):
    for below in ("images", "annotations"):
        for path in (shapes / below / "training").iterdir():
            path.rename(shapes / below / path.name)
        for part in ("training", "validation"):
            shutil.rmtree(shapes / below / part)
    data = open_dataset(f"ade20k:{shapes}")
    assert data.describe()["sizes"] == {"train": 10, "validation": 1, "test": 1}
    assert "of the whole, by a hash" in data.describe()["split_rule"]


def test_lists_divide_whatever_folder_an_image_lies_in(shapes):
    (shapes / "splits").mkdir()
    lists = {
        "train": ["ADE_training_0003", "training/ADE_training_0001", "ADE_validation_0002.jpg"],
        "val": ["ADE_training_0007"],
        "test": ["images/validation/ADE_validation_0000"],
    }
    for name, lines in lists.items():
        (shapes / f"splits/{name}.txt").write_text("\n".join(lines) + "\n\n")
    data = open_dataset(f"ade20k:{shapes}")
    train = [data.train.sample_id(i).rsplit("/")[-1] for i in range(3)]
    assert train == ["ADE_training_0001.png", "ADE_training_0003.png", "ADE_validation_0002.png"]
    assert data.validation.sample_id(0) == "images/training/ADE_training_0007.png"
    assert data.open_test().sample_id(0) == "images/validation/ADE_validation_0000.png"
    assert data.describe()["sizes"] == {"train": 3, "validation": 1, "test": 1}
    assert "splits/train.txt, splits/val.txt, splits/test.txt" in data.describe()["split_rule"]
    assert data.describe()["notes"] == ["13 images are in none of the lists and were left out"]
    assert np.array_equal(data.train.target(2), by_hand(shapes, "images/validation/ADE_validation_0002.png"))


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "nobody"}, ["'nobody'", "train.txt", "is no image"]),
        ({"train": "ADE_training_0001", "test": "ADE_training_0001"}, ["listed twice", "test.txt"]),
        ({"test": "ADE_training_0001"}, ["no train.txt"]),
        ({"train": "ADE_training_0001", "val": "", "validation": ""}, ["mean the same part"]),
        ({"train": ""}, ["no image in its train part"]),
    ],
)
def test_a_wrong_list_is_refused_by_its_name(shapes, lists, words):
    (shapes / "splits").mkdir()
    for name, content in lists.items():
        (shapes / f"splits/{name}.txt").write_text(content)
    refused(shapes, *words)


def test_a_listed_name_of_two_images_is_refused(shapes):
    for below in ("images", "annotations"):
        shutil.copy(shapes / below / "training/ADE_training_0001.png", shapes / below / "validation")
    (shapes / "splits").mkdir()
    (shapes / "splits/train.txt").write_text("ADE_training_0001")
    refused(shapes, "'ADE_training_0001'", "is the name of 2 images")


# class names


def test_the_official_table_of_names_is_read(tmp_path):
    root = write_ade20k(tmp_path / "ADEChallengeData2016", names=False)
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t2\twall\n22 \t0.1\t8\t1\tbed \n"
    (root / "objectInfo150.txt").write_text(table.replace("22 ", "2 ") + "3\t0\t0\t0\tbuilding, edifice\n")
    data = open_dataset(f"ade20k:{tmp_path}")  # the folder it is unpacked into will do
    assert data.classes == ("wall", "bed", "building, edifice")
    (root / "objectInfo150.txt").write_text(table)
    refused(root, "objectInfo150.txt", "1, 2, …")


@pytest.mark.parametrize(
    "content",
    [
        ["a", "b", "c"],
        {"classes": ["a", "b", "c"], "reduce_zero_label": True},
        {"classes": [{"id": i + 1, "name": n, "color": [0, 0, 0]} for i, n in enumerate("abc")]},
        {"classes": ["a", "b", "c"], "ignore_label": 0},
    ],
)
def test_names_from_json(shapes, content):
    (shapes / "classes.json").write_text(json.dumps(content))
    data = open_dataset(f"ade20k:{shapes}")
    assert data.classes == ("a", "b", "c")
    assert set(np.unique(data.train.target(0))) <= {0, 1, 2, 255}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["classes.json", "not JSON"]),
        ('{"names": ["a"]}', ['list "classes"']),
        ("[]", ["names no class"]),
        ('["a"]', ["one class only"]),
        ('["a", 3]', ["class 1", "expected a name"]),
        ('{"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}', ["'a'", "id 0, expected 1"]),
        ('{"classes": ["a", "b"], "reduce_zero_label": "no"}', ["true or false"]),
        ('{"classes": ["a", "b"], "ignore_label": 2}', ['"ignore_label"', "not a class"]),
    ],
)
def test_a_wrong_list_of_classes_is_refused(shapes, content, words):
    (shapes / "classes.json").write_text(content)
    refused(shapes, *words)


def test_a_set_that_does_not_name_its_classes_is_told_how(tmp_path):
    refused(
        write_ade20k(tmp_path / "shapes", names=False), "classes.json", "classes.txt", "objectInfo150.txt"
    )


# what is wrong with single images


def broken(root: Path, *words: str) -> None:
    """Refused by the name of what is wrong; with skip_broken that one image is left out."""
    refused(root, "1 of the 18 images", "--skip-broken", *words)
    data = open_dataset(f"ade20k:{root}", skip_broken=True)
    assert data.describe()["sizes"] == {"train": 10, "validation": 1, "test": 6}
    assert data.skipped == ("images/training/ADE_training_0000.png",)
    for i in range(len(data.train)):
        raw = np.array(Image.open(root / data.train.sample_id(i).replace("images", "annotations"))).astype(
            int
        )
        assert np.array_equal(data.train.target(i), np.where(raw == 0, 255, raw - 1))


def test_a_label_above_the_classes_is_named_with_its_file(shapes):
    path = first_map_changed(shapes, lambda labels: labels.__setitem__((0, 0), 4))
    broken(shapes, f"annotations/training/{path.name}", "label 4", "3 classes are 1 to 3")


def test_a_map_of_another_size_is_named_with_both_sizes(shapes):
    path = first_map(shapes)
    Image.open(path).resize((50, 40)).save(path)
    broken(shapes, f"annotations/training/{path.name}", "50 x 40", "64 x 48")


def test_an_image_lying_on_its_side_is_explained(shapes):
    path = first_map(shapes)
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    broken(shapes, "EXIF")


def test_a_missing_map_is_named(shapes):
    path = first_map(shapes)
    path.unlink()
    broken(shapes, f"annotations/training/{path.name}", "No such file")


def test_a_damaged_map_is_named(shapes):
    path = first_map(shapes)
    path.write_bytes(path.read_bytes()[:-30])
    broken(shapes, f"annotations/training/{path.name}")


def test_maps_that_lie_elsewhere_altogether_are_one_sentence(shapes):
    (shapes / "annotations/training").rename(shapes / "annotations/elsewhere")
    refused(shapes, "none of the 12 images", "annotations/training/ADE_training_0000.png")


def test_maps_without_an_image_are_noted(shapes):
    path = first_map(shapes)
    shutil.copy(path, path.with_name("extra.png"))
    assert open_dataset(f"ade20k:{shapes}").describe()["notes"] == [
        "1 label maps have no image (annotations/training/extra.png) and were left out"
    ]


def test_two_images_of_one_name_do_not_share_a_map(shapes):
    image = shapes / "images/training/ADE_training_0000.png"
    Image.open(image).save(image.with_suffix(".jpg"))
    refused(shapes, "ADE_training_0000.jpg", "ADE_training_0000.png", "share a label map")


def test_a_map_that_vanishes_later_is_one_sentence(shapes):
    data = open_dataset(f"ade20k:{shapes}")
    for path in (shapes / "annotations/training").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"the annotation annotations/training/.* can no longer be read"):
        data.train.target(0)


def test_a_folder_of_another_layout_is_told_the_right_one(tmp_path):
    (tmp_path / "images").mkdir()
    refused(tmp_path, "no folder annotations", "images/training")


# fingerprints


def test_a_changed_label_map_is_another_dataset_and_a_moved_one_is_not(shapes, tmp_path):
    first = open_dataset(f"ade20k:{shapes}")
    moved = shutil.copytree(shapes, tmp_path / "moved")
    assert open_dataset(f"ade20k:{moved}").fingerprint == first.fingerprint
    first_map_changed(moved, lambda labels: labels.__setitem__((3, 3), 2 if labels[3, 3] != 2 else 1))
    other = open_dataset(f"ade20k:{moved}")
    assert other.fingerprint != first.fingerprint
    assert other.test_fingerprint == first.test_fingerprint


def test_the_same_maps_understood_otherwise_are_another_dataset(shapes):
    (shapes / "classes.json").write_text('["a", "b", "c"]')
    three = open_dataset(f"ade20k:{shapes}").fingerprint
    (shapes / "classes.json").write_text('["a", "b", "c", "d"]')
    assert open_dataset(f"ade20k:{shapes}").fingerprint != three
    (shapes / "classes.json").write_text('{"classes": ["v", "a", "b", "c"], "reduce_zero_label": false}')
    four = open_dataset(f"ade20k:{shapes}")
    assert four.fingerprint != three
    raw = np.array(Image.open(shapes / four.train.sample_id(0).replace("images", "annotations")))
    assert np.array_equal(four.train.target(0), raw)  # not what was remembered of the other reading


def test_maps_are_checked_anew_when_the_classes_change(shapes):
    open_dataset(f"ade20k:{shapes}")
    (shapes / "classes.json").write_text('["a", "b"]')
    refused(shapes, "label 3, but its 2 classes are 1 to 2")


def test_a_change_is_noticed_at_the_next_opening(shapes):
    open_dataset(f"ade20k:{shapes}")
    first_map_changed(shapes, lambda labels: labels.__setitem__((0, 0), 200))
    refused(shapes, "label 200")


# reports and pre-training


def test_the_check_counts_pixels_and_images_of_each_class(shapes):
    report = check(f"ade20k:{shapes}")
    data = open_dataset(f"ade20k:{shapes}")
    assert report.ok
    assert report.task == "segmentation"
    assert report.fingerprints == data.describe()["fingerprints"]
    for split in all_splits(data):
        maps = [split.target(i) for i in range(len(split))]
        flat = np.concatenate([target.ravel() for target in maps])
        content = report.contents[split.name]
        assert content.ignored == pytest.approx((flat == 255).mean())
        for label, name in enumerate(data.classes):
            assert content.pixels[name] == pytest.approx((flat == label).sum() / (flat != 255).sum())
            assert content.images[name] == sum((target == label).any() for target in maps)
    assert json.loads(json.dumps(report.content()))["contents"]["test"]["bare"] == 0


def test_the_check_names_classes_that_do_not_occur_and_all_broken_maps(shapes):
    (shapes / "classes.json").write_text('["background", "disc", "square", "unicorn"]')
    first_map(shapes).unlink()
    report = check(f"ade20k:{shapes}")
    assert not report.ok
    assert list(report.broken) == ["images/training/ADE_training_0000.png"]
    assert "1 images cannot be used" in report.problems[0]
    assert any("test: 1 of the 4 classes do not occur (unicorn)" in w for w in report.warnings)


def test_images_are_pretrained_on_without_labels(shapes):
    data = open_dataset(f"ade20k:{shapes}")
    batches = training_batches(
        data.train, augmentation=Augmentation(), image_size=16, seed=0, batch_size=4, stop=2
    )
    for (batch,) in batches:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.labels is None


@pytest.mark.slow
def test_a_run_pretrains_on_it_and_refuses_methods_that_learn_from_labels(shapes, tmp_path):
    asked = {
        "protocol": "none",
        "data": f"ade20k:{shapes}",
        "images": 4,
        "batch_size": 4,
        "backbone": "vit_micro_patch4",
        "image_size": 16,
        "out": tmp_path / "out",
    }
    result = mimbench.run(methods="mae", **asked)
    assert [row for row in result.plan if "supervised" in row.name] == []  # no ceiling without labels
    (record,) = (record for record in read_folder(tmp_path / "out") if record.content["method"] == "mae")
    assert record.status == "done"
    assert record.data["task"] == "segmentation"
    assert record.data["store_side"] is None
    with pytest.raises(UserError, match="supervised needs labels, one for each image"):
        mimbench.run(methods="supervised", **asked)


@pytest.mark.parametrize("limit", ["16", "0"])
def test_a_split_travels_to_a_spawned_process(shapes, monkeypatch, limit):
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", limit)
    split = open_dataset(f"ade20k:{shapes}").train
    other = pickle.loads(pickle.dumps(split))
    assert np.array_equal(other.image(3), split.image(3))
    assert np.array_equal(other.target(3), split.target(3))


def test_a_classification_set_has_no_targets():
    with pytest.raises(UserError, match="no label maps"):
        open_dataset("digits").train.target(0)


# the real set


@pytest.mark.skipif(not SHARED, reason="MIMBENCH_DATA is not set")
def test_msrc_as_its_own_documents_count_it():
    root = Path(SHARED) / "msrc21"
    data = open_dataset(f"ade20k:{root}")
    facts = json.loads((root / "classes.json").read_text())
    assert data.describe()["sizes"] == {"train": 276, "validation": 59, "test": 256}
    assert data.classes == tuple(entry["name"] for entry in facts["classes"])
    for name, split in (("train", data.train), ("val", data.validation), ("test", data.open_test())):
        listed = (root / f"splits/{name}.txt").read_text().split()
        assert sorted(Path(split.sample_id(i)).stem for i in range(len(split))) == sorted(listed)
    counts = np.zeros(22, int)
    for split in (data.train, data.validation):
        for i in range(len(split)):
            target = split.target(i)
            assert target.shape == split.image(i).shape[:2]
            assert np.array_equal(target, by_hand(root, split.sample_id(i)))
            counts += np.bincount((target.ravel().astype(int) + 1) % 256, minlength=22)  # 255: label 0
    assert counts.tolist() == facts["pixel_counts_by_label"]["training"]
