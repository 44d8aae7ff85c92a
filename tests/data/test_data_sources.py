from __future__ import annotations

import json
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mimbench import registry
from mimbench.data import open_dataset
from mimbench.errors import UserError


def refused(spec: str, *words: str) -> None:
    """Opening is refused by one sentence that holds all ``words``."""
    with pytest.raises(UserError) as caught:
        open_dataset(spec)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def samples(split) -> list[tuple[bytes, int]]:
    return [(split.image(i).tobytes(), int(split.labels[i])) for i in range(len(split))]


# digits


def test_digits_are_sklearns_pixels_in_full_range_with_their_own_labels():
    from sklearn.datasets import load_digits

    reference = load_digits()
    by_pixels = {}
    for scan, label in zip(reference.images, reference.target, strict=True):
        by_pixels[np.rint(scan * 255 / 16).astype(np.uint8).tobytes()] = label
    data = open_dataset("digits")
    seen = 0
    for split in (data.train, data.validation, data.open_test()):
        for i in range(len(split)):
            image = split.image(i)
            assert image.shape == (8, 8, 3)
            assert (image == image[..., :1]).all()
            assert by_pixels[image[..., 0].tobytes()] == split.labels[i]
            seen += 1
    assert seen == 1797
    assert max(split.image(i).max() for split in (data.train,) for i in range(20)) == 255


def test_digits_defaults_fit_their_size_and_never_mirror_a_digit():
    data = open_dataset("digits")
    assert (data.defaults.image_size, data.defaults.backbone) == (16, "vit_micro_patch4")
    assert data.defaults.crop_pct == 1.0
    assert data.defaults.flip is False
    assert data.classes == tuple("0123456789")


def test_digits_splits_never_move():
    # Published numbers on the default depend on it.
    data = open_dataset("digits")
    assert data.fingerprint == "e3cdcb0b7781901c3d1f1a08ce00c8edd55ee24121bd0ced0c4fa45e093c95db"
    assert data.describe()["sizes"] == {"train": 1259, "validation": 179, "test": 359}


def test_a_misspelt_source_gets_a_suggestion():
    refused("digit", "digits")
    refused("parket:/x", "parquet")


def test_a_path_without_its_kind_is_explained(make_folder):
    root = make_folder("pets", {"a": 1})
    refused(str(root), f"imagefolder:{root}")


def test_an_argument_digits_would_ignore_is_refused():
    refused("digits:mnist", "no argument")


# imagefolder


def test_class_folders_become_labels_in_order_of_their_names(make_folder):
    data = open_dataset(f"imagefolder:{make_folder('pets', {'b': 20, 'a': 30, 'c': 20})}")
    assert data.classes == ("a", "b", "c")
    assert data.name == "imagefolder:pets"
    for split in (data.train, data.validation, data.open_test()):
        for i in range(len(split)):
            assert split.sample_id(i).startswith(data.classes[split.labels[i]] + "/")
    assert data.describe()["sizes"] == {"train": 56, "validation": 7, "test": 7}


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_given_splits_are_used_as_they_are(make_folder, noise, validation):
    root = make_folder(
        "pets",
        {"train/a": 3, "train/b": 4, f"{validation}/a": 2, f"{validation}/b": 1, "test/a": 1, "test/b": 2},
    )
    data = open_dataset(f"imagefolder:{root}")
    assert [data.train.image(i).tobytes() for i in range(7)] == [noise(i).tobytes() for i in range(7)]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.validation.labels.tolist() == [0, 0, 1]
    assert data.open_test().labels.tolist() == [0, 1, 1]
    assert data.open_test().sample_id(2) == "test/b/001.png"
    assert data.describe()["split_rule"] == "all three as given"


def test_without_a_test_part_the_validation_part_is_the_test_and_never_chooses(make_folder):
    root = make_folder("pets", {"train/a": 20, "train/b": 30, "val/a": 4, "val/b": 5})
    data = open_dataset(f"imagefolder:{root}")
    assert all(data.open_test().sample_id(i).startswith("val/") for i in range(9))
    assert data.test_size == 9
    assert all(data.validation.sample_id(i).startswith("train/") for i in range(5))
    assert np.bincount(data.validation.labels).tolist() == [2, 3]
    assert len(data.train) == 45
    assert "validation part" in data.describe()["split_rule"]


def test_test_openings_are_counted(make_folder):
    data = open_dataset(f"imagefolder:{make_folder('pets', {'a': 5, 'b': 5})}")
    assert data.test_openings == 0
    data.open_test()
    data.open_test()
    assert data.test_openings == 2


def test_a_flat_folder_is_for_pretraining_only(make_folder):
    data = open_dataset(f"imagefolder:{make_folder('photos', {'.': 30})}")
    assert data.classes is None
    assert data.train.labels is None
    assert (len(data.train), len(data.validation)) == (27, 3)
    assert (data.test_size, data.test_fingerprint) == (0, "")
    with pytest.raises(UserError, match="no labels"):
        data.open_test()


def test_an_unlabelled_set_with_parts_keeps_its_validation(make_folder):
    data = open_dataset(f"imagefolder:{make_folder('photos', {'train': 6, 'val': 2, 'test': 2})}")
    assert data.classes is None
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert data.describe()["notes"] == ["unlabelled: the test part was left out"]


def test_files_that_are_no_images_and_hidden_ones_are_passed_over(make_folder):
    root = make_folder("pets", {"a": 5, "b": 5})
    for name in ("a/notes.txt", "b/.hidden.png", "README.md"):
        (root / name).write_text("not an image")
    (root / ".git").mkdir()
    (root / ".git" / "x.png").write_text("not an image")
    assert sum(open_dataset(f"imagefolder:{root}").describe()["sizes"].values()) == 10


def test_a_link_in_a_circle_ends(make_folder):
    root = make_folder("pets", {"a": 5, "b": 5})
    (root / "a" / "again").symlink_to(root / "a")
    assert sum(open_dataset(f"imagefolder:{root}").describe()["sizes"].values()) == 10


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"a": 0}, ("no image file",)),
        ({"a": 5}, ("one class", "at least 2 classes", "flat folder")),
        ({"a": 5, "b": 0}, ("class folder", "b", "holds no image")),
        ({"a": 5, ".": 5}, ("both images and folders",)),
        ({"a": 2, "b": 9}, ("class a has 2 different images", "at least 3")),
        ({"val/a": 2, "test/a": 2}, ("no folder train",)),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/a": 1}, ("val and valid", "keep one")),
        ({"train/a": 2, "train/b": 2, "val": 2}, ("no class folders", "val")),
        ({"train": 2, "val/a": 2, "val/b": 2}, ("has class folders", "sort both or neither")),
        ({"train/a": 9, "train/b": 9, "val/a": 2}, ("test split", "no image of 1 of its 2 classes", "(b)")),
        ({"train/a": 9, "train/b": 9, "val/a": 2, "val/z": 1}, ("z", "training part")),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_by_one_sentence(make_folder, counts, words):
    refused(f"imagefolder:{make_folder('pets', counts)}", *words)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "cifar10", "imagenet"])
def test_a_missing_path_is_named(kind, tmp_path):
    refused(f"{kind}:{tmp_path}/nowhere", f"{tmp_path}/nowhere", "check the path")
    refused(f"{kind}:", f"{kind}:PATH")
    refused(kind, f"{kind}:PATH")


def test_a_file_is_no_image_folder(make_folder):
    refused(f"imagefolder:{make_folder('pets', {'a': 1})}/a/000.png", "is a file")


def test_an_empty_folder_is_refused_by_every_source(tmp_path):
    for kind in ("imagefolder", "parquet", "cifar10", "imagenet"):
        refused(f"{kind}:{tmp_path}", str(tmp_path))


# imagenet


def test_imagenet_takes_official_validation_as_test_and_classes_in_order_of_wnid(make_folder):
    counts = {"train/n02000000": 10, "train/n01000000": 20, "val/n01000000": 2, "val/n02000000": 1}
    root = make_folder("ILSVRC2012", counts)
    data = open_dataset(f"imagenet:{root}")
    assert data.classes == ("n01000000", "n02000000")
    assert (len(data.train), len(data.validation), data.test_size) == (27, 3, 3)
    assert data.open_test().labels.tolist() == [0, 0, 1]
    assert (data.defaults.image_size, data.defaults.crop_pct) == (224, 0.875)


def test_imagenet_as_kaggle_packs_it(make_folder):
    counts = {
        f"ILSVRC/Data/CLS-LOC/{p}/{w}": 10 for p in ("train", "val") for w in ("n01000000", "n02000000")
    }
    assert open_dataset(f"imagenet:{make_folder('in', counts)}").test_size == 20


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train/n01000000": 3, "train/n02000000": 3, "val": 3}, ("val", "not sorted", "valprep.sh")),
        ({"train/n01000000": 3, "train/n02000000": 3}, ("no folder val",)),
        ({"train/cat": 3, "train/dog": 3, "val/cat": 3}, ("wnid", "cat", "imagefolder:PATH")),
        ({"train": 3, "val/n01000000": 3}, ("train", "outside")),
    ],
)
def test_an_unsorted_imagenet_is_told_how_to_be_sorted(make_folder, counts, words):
    refused(f"imagenet:{make_folder('in', counts)}", *words)


# cifar10


@pytest.fixture
def cifar(tmp_path):
    """The archive's layout with 40 + 20 images, pickled as by the original's Python 2."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    truth = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = draw.integers(0, 256, (40, 3072), np.uint8)
        labels = [i % 4 for i in range(40)]
        truth[name] = (data, labels)
        batch = {b"data": data, b"labels": labels, b"filenames": [b"%d.png" % i for i in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"label_names": [b"airplane", b"bird", b"cat", b"deer"], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder, truth


def test_cifar10_gives_the_archives_pixels_and_its_test_batch(cifar):
    folder, truth = cifar
    data = open_dataset(f"cifar10:{folder}")
    assert data.classes == ("airplane", "bird", "cat", "deer")
    assert (len(data.train), len(data.validation), data.test_size) == (180, 20, 40)
    test = data.open_test()
    pixels, labels = truth["test_batch"]
    for i in range(40):
        assert np.array_equal(test.image(i), pixels[i].reshape(3, 32, 32).transpose(1, 2, 0))
    assert test.labels.tolist() == labels
    assert (data.defaults.image_size, data.defaults.backbone) == (32, "vit_tiny_patch4")


def test_cifar10_packed_and_unpacked_are_the_same(cifar, tmp_path):
    folder, _ = cifar
    packed = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    whole = open_dataset(f"cifar10:{packed}")
    assert whole.fingerprint == open_dataset(f"cifar10:{folder}").fingerprint
    assert whole.fingerprint == open_dataset(f"cifar10:{folder.parent}").fingerprint
    (tmp_path / "half.tar.gz").write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    refused(f"cifar10:{tmp_path / 'half.tar.gz'}", "half.tar.gz")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused_unrun(cifar, tmp_path):
    folder, _ = cifar
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": _Bomb(tmp_path / "ran")}, protocol=2))
    refused(f"cifar10:{folder}", "data_batch_3", "open")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}q", pickle.dumps([1]), pickle.dumps({})])
def test_a_damaged_batch_is_refused(cifar, content):
    folder, _ = cifar
    (folder / "data_batch_2").write_bytes(content)
    refused(f"cifar10:{folder}", "data_batch_2")


def test_a_missing_batch_is_named(cifar):
    folder, _ = cifar
    (folder / "data_batch_4").unlink()
    refused(f"cifar10:{folder}", "data_batch_4 is missing")


# parquet


def test_parquet_of_structs_and_of_plain_bytes_are_the_same(make_parquet, noise):
    labels = [0, 1] * 20
    structs = open_dataset(f"parquet:{make_parquet('a/train.parquet', labels)}")
    plain = open_dataset(f"parquet:{make_parquet('b/train.parquet', labels, plain=True)}")
    assert structs.fingerprint == plain.fingerprint
    assert structs.name == "parquet:train.parquet"
    everything = [s for split in (plain.train, plain.validation, plain.open_test()) for s in samples(split)]
    assert sorted(everything) == sorted((noise(i).tobytes(), i % 2) for i in range(40))


def test_shards_are_one_table_in_order_of_their_names(make_parquet, noise, tmp_path):
    make_parquet("set/data/train-00001-of-00002.parquet", [0, 1] * 5, first=10)
    make_parquet("set/data/train-00000-of-00002.parquet", [0, 1] * 5, first=0)
    make_parquet("set/data/validation-00000-of-00001.parquet", [0, 1], first=20)
    make_parquet("set/data/test-00000-of-00001.parquet", [0, 1], first=22)
    data = open_dataset(f"parquet:{tmp_path / 'set'}")
    assert [data.train.image(i).tobytes() for i in range(20)] == [noise(i).tobytes() for i in range(20)]
    assert data.train.sample_id(10) == "train-00001-of-00002.parquet row 0"
    assert data.validation.image(1).tobytes() == noise(21).tobytes()
    assert data.open_test().image(0).tobytes() == noise(22).tobytes()


def test_class_names_come_from_classes_json_or_hugging_face_or_are_numbers(make_parquet, tmp_path):
    path = make_parquet("set/train.parquet", [0, 1] * 10)
    assert open_dataset(f"parquet:{tmp_path / 'set'}").classes == ("0", "1")

    table = pq.read_table(path)
    info = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    assert open_dataset(f"parquet:{tmp_path / 'set'}").classes == ("ant", "bee")

    (tmp_path / "set" / "classes.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    assert open_dataset(f"parquet:{tmp_path / 'set'}").classes == ("cat", "dog")
    (tmp_path / "set" / "classes.json").write_text(json.dumps(["cow", "pig"]))
    assert open_dataset(f"parquet:{tmp_path / 'set'}").classes == ("cow", "pig")


def test_a_table_without_labels_is_for_pretraining_only(make_parquet):
    data = open_dataset(f"parquet:{make_parquet('train.parquet', None, count=20)}")
    assert data.classes is None
    assert (len(data.train), len(data.validation), data.test_size) == (18, 2, 0)


def test_hidden_test_labels_do_not_become_a_class(make_parquet, tmp_path):
    make_parquet("set/train.parquet", [0, 1] * 10)
    make_parquet("set/validation.parquet", [0, 1], first=20)
    make_parquet("set/test.parquet", [-1] * 5, first=30)
    data = open_dataset(f"parquet:{tmp_path / 'set'}")
    assert data.classes == ("0", "1")
    assert data.test_size == 2
    assert "hidden labels" in data.describe()["notes"][0]


def test_a_truncated_table_is_named_wherever_it_is_cut(make_parquet):
    path = make_parquet("train.parquet", [0, 1] * 30, height=40, width=40)
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(f"parquet:{path}", str(path), "cut short")
    damaged = bytearray(whole)  # the footer is sound, a page is not
    damaged[4:60] = bytes(56)
    path.write_bytes(damaged)
    refused(f"parquet:{path}", str(path), "cut short")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"img": [b"x"], "label": [0]}, ("no column 'image'", "img, label")),
        ({"image": ["x"], "label": [0]}, ("string", "expected binary")),
        ({"image": [b"x"], "label": ["cat"]}, ("'label'", "string", "integer")),
        ({"image": [b"x", b"y"], "label": [0, None]}, ("1 missing",)),
        ({"image": [b"x"], "label": [-3]}, ("label -3",)),
        ({"image": [b"x"], "label": [0]}, ("one class only",)),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, ("no rows",)),
    ],
)
def test_a_table_of_another_shape_is_refused(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    refused(f"parquet:{tmp_path}", *words)


def test_labels_beyond_the_class_names_are_refused(make_parquet, tmp_path):
    make_parquet("set/train.parquet", [0, 1, 2] * 10)
    (tmp_path / "set" / "classes.json").write_text('["a", "b"]')
    refused(f"parquet:{tmp_path / 'set'}", "label 2", "2 classes", "0 to 1")
    (tmp_path / "set" / "classes.json").write_text('["a", "b", "c", "d"]')
    refused(f"parquet:{tmp_path / 'set'}", "no image of 1 of its 4 classes (d)")
    (tmp_path / "set" / "classes.json").write_text("{")
    refused(f"parquet:{tmp_path / 'set'}", "classes.json is not JSON")
    (tmp_path / "set" / "classes.json").write_text('{"names": []}')
    refused(f"parquet:{tmp_path / 'set'}", "classes.json should be")


def test_a_folder_without_a_training_table_says_what_is_there(make_parquet, tmp_path):
    make_parquet("set/images.parquet", [0, 1])
    refused(f"parquet:{tmp_path / 'set'}", "no train.parquet", "images.parquet")


def test_a_part_that_lacks_labels_is_refused(make_parquet, tmp_path):
    make_parquet("set/train.parquet", [0, 1] * 10)
    make_parquet("set/val.parquet", None, count=3, first=50)
    refused(f"parquet:{tmp_path / 'set'}", "validation part has none")


def test_missing_bytes_are_a_broken_image(tmp_path, encoded):
    rows = [{"bytes": encoded(i), "path": None} for i in range(19)] + [{"bytes": None, "path": "x"}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 10}), tmp_path / "train.parquet")
    refused(f"parquet:{tmp_path}", "1 of the 20 images", "train.parquet row 19 (no bytes)")
    assert open_dataset(f"parquet:{tmp_path}", skip_broken=True).skipped == ("train.parquet row 19",)


# hf


def test_an_absent_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:uoft-cs/cifar10", 'pip install "mimbench[hub]"')


@pytest.fixture
def hub(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return datasets


def test_a_saved_hugging_face_set_equals_the_same_images_in_a_table(hub, encoded, make_parquet, tmp_path):
    features = hub.Features({"img": hub.Image(), "fine": hub.ClassLabel(names=["ant", "bee"])})

    def part(first: int, count: int):
        rows = {"img": [{"bytes": encoded(first + i), "path": None} for i in range(count)]}
        return hub.Dataset.from_dict(rows | {"fine": [i % 2 for i in range(count)]}, features=features)

    hub.DatasetDict({"train": part(0, 100), "test": part(100, 10)}).save_to_disk(str(tmp_path / "saved"))
    make_parquet("set/train.parquet", [i % 2 for i in range(100)])
    make_parquet("set/test.parquet", [i % 2 for i in range(10)], first=100)
    for _ in range(2):  # the second time from what is remembered
        data = open_dataset(f"hf:{tmp_path / 'saved'}")
        table = open_dataset(f"parquet:{tmp_path / 'set'}")
        assert data.fingerprint == table.fingerprint
        assert samples(data.train) == samples(table.train)
        assert data.classes == ("ant", "bee")
        assert data.name == "hf:saved"


def test_a_hugging_face_set_that_is_not_there_is_one_sentence(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(f"hf:{tmp_path / 'empty'}", "cannot be loaded")


def test_a_hugging_face_set_without_images_is_refused(hub, tmp_path):
    hub.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "texts"))
    refused(f"hf:{tmp_path / 'texts'}", "text", "type Image")


# plug-ins


def test_an_installed_package_adds_a_source(tmp_path, monkeypatch):
    (tmp_path / "stripes.py").write_text(
        """
import numpy as np
from mimbench.data.sources import Listing, Part

class Stripes(Part):
    identity = "stripes"
    labels = np.arange(40) % 2
    def __len__(self): return 40
    def name(self, index): return f"stripe {index}"
    def encoded(self, index): return bytes([index])
    def inspect(self, content): return 6, 4
    def decode(self, content): return np.full((6, 4, 3), content[0], np.uint8)

def stripes(argument):
    return Listing(name=f"stripes:{argument}", parts={"train": Stripes()}, classes=("even", "odd"))
"""
    )
    info = tmp_path / "stripes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mimbench.datasets]\nstripes = stripes:stripes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.datasets.cache_clear()
    try:
        data = open_dataset("stripes:wide")
        assert data.name == "stripes:wide"
        for i in range(len(data.train)):
            assert data.train.image(i)[0, 0, 0] % 2 == data.train.labels[i]
            assert data.train.image(i).shape == (6, 4, 3)
    finally:
        registry.datasets.cache_clear()


def test_the_same_folder_elsewhere_is_the_same_dataset(make_folder, tmp_path):
    root = make_folder("pets", {"a": 20, "b": 20})
    before = open_dataset(f"imagefolder:{root}")
    shutil.copytree(root, tmp_path / "moved" / "other name")
    after = open_dataset(f"imagefolder:{tmp_path / 'moved' / 'other name'}")
    assert after.fingerprint == before.fingerprint
    assert after.name == "imagefolder:other name"
