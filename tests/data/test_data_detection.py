from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import Boxes, check, open_dataset, training_batches
from mimbench.data.sources import coco_file
from mimbench.errors import UserError
from mimbench.spec import Augmentation
from tests.dense_data import write_coco

SHARED = os.environ.get("MIMBENCH_DATA")
TRAIN = "annotations/instances_train2017.json"


@pytest.fixture
def shapes(tmp_path):
    return write_coco(tmp_path / "shapes", crowd=True, suffix=".png")


def refused(root: Path, *words: str) -> None:
    """Opening is refused by one sentence that holds all ``words``."""
    with pytest.raises(UserError) as caught:
        open_dataset(f"coco:{root}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def changed(root: Path, change, file: str = TRAIN) -> None:
    content = json.loads((root / file).read_text())
    change(content)
    (root / file).write_text(json.dumps(content))


def all_splits(data):
    return [data.train, data.validation, data.open_test()]


def official(root: Path, split: str):
    """pycocotools' own reader."""
    coco = pytest.importorskip("pycocotools.coco")
    return coco.COCO(str(root / f"annotations/instances_{split}2017.json"))


def agrees(data, root: Path) -> int:
    """Holds every target against what pycocotools reads; returns the number of objects."""
    objects = 0
    for split in all_splits(data):
        reference = official(root, "val" if split.name == "test" else "train")
        for i in range(len(split)):
            target = split.target(i)
            (entry,) = reference.loadImgs([target.image_id])
            assert split.sample_id(i).endswith(f"/{entry['file_name']}")
            assert split.image(i).shape == (entry["height"], entry["width"], 3)
            assert (target.height, target.width) == (entry["height"], entry["width"])
            wanted = reference.loadAnns(reference.getAnnIds([target.image_id]))
            assert target.ids.tolist() == [a["id"] for a in wanted]
            assert target.boxes.tolist() == [a["bbox"] for a in wanted]
            assert target.areas.tolist() == [a["area"] for a in wanted]
            assert target.crowd.tolist() == [bool(a["iscrowd"]) for a in wanted]
            names = [reference.cats[a["category_id"]]["name"] for a in wanted]
            assert [data.classes[label] for label in target.labels] == names
            assert [data.category_ids[label] for label in target.labels] == [a["category_id"] for a in wanted]
            if data.has_masks:
                assert list(target.masks) == [a["segmentation"] for a in wanted]
            else:
                assert target.masks is None
            objects += len(target)
    return objects


# layout


@pytest.mark.parametrize("masks", [True, False])
def test_objects_are_those_pycocotools_reads(tmp_path, masks):
    root = write_coco(tmp_path / "shapes", masks=masks, crowd=True)
    data = open_dataset(f"coco:{root}", image_size=16)
    assert data.task == "detection"
    assert data.has_masks is masks
    assert data.classes == ("disc 0", "square 1", "triangle 2")
    assert data.category_ids == (2, 5, 8)
    assert data.describe()["sizes"] == {"train": 11, "validation": 1, "test": 6}
    assert all(split.labels is None for split in all_splits(data))
    assert agrees(data, root) > 20


def test_pixels_are_at_full_resolution(shapes):
    split = open_dataset(f"coco:{shapes}", image_size=16).train
    for i in range(len(split)):
        assert np.array_equal(split.image(i), np.array(Image.open(shapes / split.sample_id(i))))


def test_masks_are_what_pycocotools_draws_shapes_from(shapes):
    mask_utils = pytest.importorskip("pycocotools.mask")
    reference = official(shapes, "train")
    split = open_dataset(f"coco:{shapes}").train
    kinds = set()
    for i in range(len(split)):
        target = split.target(i)
        for number, mask in zip(target.ids.tolist(), target.masks, strict=True):
            kinds.add(type(mask))
            coded = mask_utils.frPyObjects(mask, target.height, target.width)
            drawn = mask_utils.decode(mask_utils.merge(coded) if isinstance(coded, list) else coded)
            assert np.array_equal(drawn, reference.annToMask(reference.anns[number]))
    assert kinds == {list, dict}  # outlines, and the run lengths of crowds


def test_images_without_objects_are_kept(shapes):
    data = open_dataset(f"coco:{shapes}")
    bare = [split.target(i) for split in all_splits(data) for i in range(len(split))]
    bare = [target for target in bare if not len(target)]
    assert len(bare) == 3
    assert bare[0].boxes.shape == (0, 4)
    assert bare[0].masks == ()
    assert bare[0].degenerate.shape == (0,)


def test_labels_follow_the_ids_whatever_the_order_of_the_list(shapes):
    before = open_dataset(f"coco:{shapes}")
    for file in (TRAIN, TRAIN.replace("train", "val")):
        changed(shapes, lambda content: content["categories"].reverse(), file)
    after = open_dataset(f"coco:{shapes}")
    assert after.classes == before.classes
    assert after.fingerprint == before.fingerprint


def test_a_given_test_part_is_the_test_and_one_without_annotations_is_noted(tmp_path):
    root = write_coco(tmp_path / "shapes", test=4)
    data = open_dataset(f"coco:{root}")
    assert data.describe()["sizes"] == {"train": 12, "validation": 6, "test": 4}
    (root / "annotations/instances_test2017.json").unlink()
    data = open_dataset(f"coco:{root}")
    assert data.describe()["sizes"] == {"train": 11, "validation": 1, "test": 6}
    assert data.describe()["notes"] == ["the folder test2017 has no annotations and was left out"]


@pytest.mark.parametrize("layout", ["images/", "plain", "one folder", "exported"])
def test_other_places_of_the_same_files(shapes, layout):
    before = open_dataset(f"coco:{shapes}").fingerprint
    if layout == "images/":
        (shapes / "images").mkdir()
        for part in ("train2017", "val2017"):
            (shapes / part).rename(shapes / "images" / part)
    if layout == "plain":
        for part in ("train", "val"):
            (shapes / f"{part}2017").rename(shapes / part)
            old = shapes / f"annotations/instances_{part}2017.json"
            old.rename(shapes / f"annotations/{part}.json")
    if layout == "one folder":
        (shapes / "images").mkdir()
        for path in [*shapes.glob("train2017/*"), *shapes.glob("val2017/*")]:
            path.rename(shapes / "images" / path.name)
    if layout == "exported":
        for part, folder in (("train", "train"), ("val", "valid")):
            (shapes / f"{part}2017").rename(shapes / folder)
            old = shapes / f"annotations/instances_{part}2017.json"
            old.rename(shapes / folder / "_annotations.coco.json")
    data = open_dataset(f"coco:{shapes}")
    assert data.fingerprint == before
    assert data.describe()["notes"] == []


def test_one_part_alone_is_divided_by_content(shapes):
    (shapes / "annotations/instances_val2017.json").unlink()
    data = open_dataset(f"coco:{shapes}")
    assert data.describe()["sizes"] == {"train": 10, "validation": 1, "test": 1}


def test_one_class_is_enough_to_be_detected(tmp_path):
    data = open_dataset(f"coco:{write_coco(tmp_path / 'discs', classes=1)}")
    assert data.classes == ("disc 0",)


def test_images_the_file_does_not_name_are_noted(shapes):
    shutil.copy(next((shapes / "train2017").iterdir()), shapes / "train2017/zebra.png")
    assert open_dataset(f"coco:{shapes}").describe()["notes"] == [
        "1 images are not named in instances_train2017.json and were left out"
    ]


def test_a_split_can_be_handed_to_cocos_own_tools(shapes, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    data = open_dataset(f"coco:{shapes}")
    (tmp_path / "out.json").write_text(json.dumps(data.coco(data.train)))
    ours, theirs = coco.COCO(str(tmp_path / "out.json")), official(shapes, "train")
    assert len(ours.imgs) == 11
    assert ours.cats.keys() == theirs.cats.keys()
    for number, entry in ours.anns.items():
        assert entry == theirs.anns[number]
    held = {a for i in range(len(data.validation)) for a in data.validation.target(i).ids.tolist()}
    assert ours.anns.keys() | held == theirs.anns.keys()
    with pytest.raises(UserError, match="no boxes"):
        open_dataset("digits").coco(data.train)


# what is wrong


def with_value(key: str, field: str, value, place: int = 0):
    def change(content):
        if value is ...:
            del content[key][place][field]
        else:
            content[key][place][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_value("images", "id", 14), ["two images have the id 14"]),
        (with_value("annotations", "id", 3), ["two annotations have the id 3"]),
        (with_value("categories", "id", 5), ["two categories have the id 5"]),
        (with_value("images", "file_name", "000000000014.png"), ["7 and 14 have the same file"]),
        (with_value("images", "file_name", "../x.png"), ["leaves its folder"]),
        (with_value("images", "file_name", ...), ['"file_name" of image 7', "missing"]),
        (with_value("images", "width", 0), ['"width" of image 7 is 0']),
        (with_value("annotations", "image_id", 999), ["annotation 1", "image 999, which is not listed"]),
        (with_value("annotations", "category_id", 3), ["annotation 1", "category 3, which is not listed"]),
        (with_value("annotations", "bbox", [1, 2, 3]), ['"bbox" of annotation 1 is [1, 2, 3]']),
        (with_value("annotations", "bbox", [1, 2, 3, math.nan]), ['"bbox" of annotation 1', "NaN"]),
        (with_value("annotations", "area", "large"), ['"area" of annotation 1']),
        (with_value("annotations", "iscrowd", 2), ['"iscrowd" of annotation 1']),
        (with_value("annotations", "id", "one"), ['"id" of one annotation is "one"']),
        (with_value("annotations", "segmentation", [[1, 2, 3]]), ["mask of annotation 1", "[x, y,"]),
        (with_value("annotations", "segmentation", {"size": [9, 9], "counts": [81]}), ["[9, 9]", "[48, 64]"]),
        (lambda content: content.pop("categories"), ['no list of objects "categories"']),
        (lambda content: content["images"].clear(), ['"images" is empty']),
        (lambda content: content["annotations"].clear(), ["no annotations"]),
        (with_value("categories", "name", "oval"), ["different categories", "val2017"]),
    ],
)
def test_a_file_that_is_not_cocos_format_is_refused_by_its_name(shapes, change, words):
    changed(shapes, change)
    refused(shapes, "instances_train2017.json", *words)


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"[1]", b"\xff\xfe\x00"])
def test_broken_json_is_refused_by_its_name(shapes, content):
    (shapes / TRAIN).write_bytes(content)
    refused(shapes, "instances_train2017.json")


def test_a_folder_of_another_layout_is_told_the_right_one(shapes):
    (shapes / TRAIN).unlink()
    refused(shapes, "no annotations of a training part", "instances_val2017.json", "instances_train2017.json")
    shutil.rmtree(shapes / "annotations")
    refused(shapes, "found: none")


def test_two_files_of_one_part_are_refused(shapes):
    shutil.copy(shapes / TRAIN, shapes / "annotations/instances_train2014.json")
    refused(shapes, "instances_train2014.json", "instances_train2017.json", "keep one")


def test_images_that_lie_elsewhere_altogether_are_one_sentence(shapes):
    (shapes / "train2017").rename(shapes / "elsewhere")
    refused(shapes, "none of the 12 images", "000000000007.png", "train2017")


@pytest.mark.parametrize("number", [7, 14])  # the first of the file decides where its images are sought
def test_a_missing_image_is_named_or_skipped(shapes, number):
    name = f"{number:012}.png"
    (shapes / "train2017" / name).unlink()
    refused(shapes, "1 of the 18 images", f"train2017/{name}", "No such file", "--skip-broken")
    data = open_dataset(f"coco:{shapes}", skip_broken=True)
    assert data.skipped == (f"train2017/{name}",)
    assert data.describe()["sizes"] == {"train": 10, "validation": 1, "test": 6}
    agrees(data, shapes)


def test_an_image_of_another_size_than_the_file_says_is_named(shapes):
    path = shapes / "train2017/000000000007.png"
    Image.open(path).resize((50, 40)).save(path)
    refused(shapes, "train2017/000000000007.png", "64 x 48", "50 x 40")


def test_boxes_without_area_are_told_and_kept_for_the_metric(shapes):
    changed(shapes, with_value("annotations", "bbox", [5, 5, 0, 9]))
    changed(shapes, with_value("annotations", "bbox", [64, 5, 3, 9], place=1))
    data = open_dataset(f"coco:{shapes}")
    (note,) = data.describe()["notes"]
    assert "2 boxes have no area inside the image (annotations 1, 2)" in note
    marked = {}
    for split in all_splits(data):
        for target in map(split.target, range(len(split))):
            marked |= dict(zip(target.ids.tolist(), target.degenerate.tolist(), strict=True))
    assert {number for number, degenerate in marked.items() if degenerate} == {1, 2}
    agrees(data, shapes)


def test_a_set_with_some_outlines_is_one_of_boxes_and_says_so(shapes):
    changed(shapes, with_value("annotations", "segmentation", []))
    data = open_dataset(f"coco:{shapes}")
    assert not data.has_masks
    assert data.train.target(0).masks is None
    assert any("have an outline; it counts as a set of boxes" in note for note in data.describe()["notes"])


# fingerprints and what is remembered


def test_a_changed_box_is_another_dataset_and_other_ids_or_a_moved_folder_are_not(shapes, tmp_path):
    first = open_dataset(f"coco:{shapes}")
    moved = shutil.copytree(shapes, tmp_path / "moved")
    assert open_dataset(f"coco:{moved}").fingerprint == first.fingerprint

    def renumber(content):
        for entry in content["annotations"]:
            entry["id"] += 1000
            entry["image_id"] += 5000
        for entry in content["images"]:
            entry["id"] += 5000

    changed(moved, renumber)
    renumbered = open_dataset(f"coco:{moved}")
    assert renumbered.fingerprint == first.fingerprint
    agrees(renumbered, moved)  # and yet the new ids are given
    objects = json.loads((shapes / TRAIN).read_text())["annotations"]
    for field, value in (("bbox", [1, 1, 5, 5]), ("category_id", 8), ("iscrowd", 1), ("segmentation", [])):
        other = shutil.copytree(shapes, tmp_path / field)
        place = next(i for i, entry in enumerate(objects) if entry[field] != value)
        changed(other, with_value("annotations", field, value, place))
        data = open_dataset(f"coco:{other}")
        assert data.fingerprint != first.fingerprint, field
        assert data.test_fingerprint == first.test_fingerprint


def test_a_second_opening_parses_nothing_and_a_changed_file_is_noticed(shapes, monkeypatch):
    first = open_dataset(f"coco:{shapes}")
    parsed = []
    parse = coco_file.parse
    monkeypatch.setattr(coco_file, "parse", lambda path: parsed.append(path.name) or parse(path))
    assert open_dataset(f"coco:{shapes}").fingerprint == first.fingerprint
    assert parsed == []
    changed(shapes, with_value("annotations", "bbox", [1, 1, 5, 5]))
    assert open_dataset(f"coco:{shapes}").fingerprint != first.fingerprint
    assert parsed == ["instances_train2017.json"]


@pytest.mark.parametrize("pattern", ["*.json", "*.bin"])
@pytest.mark.parametrize("damage", [b"", b"{}", b'{"facts": 1}'])
def test_a_damaged_memory_of_the_file_is_read_anew(shapes, own_cache, pattern, damage):
    first = open_dataset(f"coco:{shapes}")
    for path in (own_cache / "data/coco").glob(pattern):
        path.write_bytes(damage)
    again = open_dataset(f"coco:{shapes}")
    assert again.fingerprint == first.fingerprint
    agrees(again, shapes)


def test_the_cache_argument_holds_for_annotations_too(shapes, own_cache, tmp_path):
    open_dataset(f"coco:{shapes}", cache=tmp_path / "here")
    assert list((tmp_path / "here/data/coco").glob("*.bin"))
    assert not (own_cache / "data").exists()


def test_a_split_travels_to_a_spawned_process_without_all_objects(shapes):
    split = open_dataset(f"coco:{shapes}").train
    split.target(0)
    packed = pickle.dumps(split)
    assert b"mimbench" in packed
    assert str(split.target(0).boxes[0, 0]).encode() not in packed
    other = pickle.loads(packed)
    for i in range(len(split)):
        assert other.target(i).boxes.tolist() == split.target(i).boxes.tolist()
        assert np.array_equal(other.image(i), split.image(i))


# reports and pre-training


def test_the_check_counts_objects_and_images_of_each_class(shapes):
    report = check(f"coco:{shapes}")
    data = open_dataset(f"coco:{shapes}")
    assert report.ok
    assert report.fingerprints == data.describe()["fingerprints"]
    for split in all_splits(data):
        targets = [split.target(i) for i in range(len(split))]
        content = report.contents[split.name]
        assert content.bare == sum(len(target) == 0 for target in targets)
        assert content.crowds == sum(int(target.crowd.sum()) for target in targets)
        for label, name in enumerate(data.classes):
            counts = [(target.labels == label).sum() for target in targets]
            assert content.objects[name] == sum(counts)
            assert content.images[name] == sum(count > 0 for count in counts)
    assert json.loads(json.dumps(report.content()))["task"] == "detection"


def test_images_are_pretrained_on_without_labels(shapes):
    data = open_dataset(f"coco:{shapes}")
    batches = training_batches(
        data.train, augmentation=Augmentation(), image_size=16, seed=0, batch_size=4, stop=2
    )
    for (batch,) in batches:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.labels is None


# the real sets


@pytest.mark.skipif(not SHARED, reason="MIMBENCH_DATA is not set")
@pytest.mark.parametrize(
    ("name", "sizes", "objects", "masks"),
    [
        ("bccd", {"train": 263, "validation": 29, "test": 72}, 3941 + 945, False),
        ("coco-mini", {"train": 175, "validation": 20, "test": 120}, 1857 + 1121, True),
    ],
)
def test_real_sets_are_what_pycocotools_reads(name, sizes, objects, masks):
    root = Path(SHARED) / name
    data = open_dataset(f"coco:{root}")
    assert data.describe()["sizes"] == sizes
    assert data.has_masks is masks
    assert data.describe()["notes"] == []
    assert agrees(data, root) == objects
    if name == "coco-mini":
        assert len(data.classes) == 80
        assert data.category_ids[-1] == 90
        crowds = [data.open_test().target(i).crowd.sum() for i in range(120)]
        assert sum(crowds) == 13


@pytest.mark.skipif(not SHARED, reason="MIMBENCH_DATA is not set")
@pytest.mark.parametrize("name", ["bccd", "coco-mini"])
def test_the_truth_given_back_as_detections_scores_one(name):
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    data = open_dataset(f"coco:{Path(SHARED) / name}")
    test = data.open_test()
    found = []
    for i in range(len(test)):
        target: Boxes = test.target(i)
        found += [
            {
                "image_id": target.image_id,
                "category_id": data.category_ids[label],
                "bbox": box.tolist(),
                "score": 0.9,
            }
            for label, box, crowd in zip(target.labels, target.boxes, target.crowd, strict=True)
            if not crowd
        ]
    truth = official(Path(SHARED) / name, "val")
    run = evaluation.COCOeval(truth, truth.loadRes(found), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert run.stats[0] == 1.0
