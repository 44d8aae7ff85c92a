from __future__ import annotations

import json

import pytest

from mimbench.data import check, open_dataset
from mimbench.errors import UserError


def test_a_sound_set_is_described(make_folder):
    root = make_folder("pets", {"a": 20, "b": 40}, height=10, width=16)
    report = check(f"imagefolder:{root}")
    data = open_dataset(f"imagefolder:{root}")
    assert report.ok
    assert report.given == {"train": 60}
    assert report.splits == data.describe()["sizes"] == {"train": 48, "validation": 6, "test": 6}
    assert report.fingerprints == data.describe()["fingerprints"]
    assert report.classes == ("a", "b")
    assert report.per_class["train"] == {"min": 16, "max": 32}
    assert report.short_side == {"min": 10, "median": 10, "max": 10}
    assert report.common_sizes == {"16 x 10": 60}
    assert report.broken == {}
    assert not any(report.duplicates.values())
    assert report.warnings == ()
    assert json.loads(json.dumps(report.content()))["ok"] is True


def test_all_broken_images_are_named_and_do_not_stop_it(make_folder):
    root = make_folder("pets", {"a": 30, "b": 30})
    for number in range(14):
        (root / f"a/{number:03}.png").write_bytes(b"x" * number)
    report = check(f"imagefolder:{root}")
    assert not report.ok
    assert len(report.broken) == 14
    assert report.broken["a/000.png"] == "empty"
    assert "14 images cannot be read" in report.problems[0]
    assert sum(report.splits.values()) == 46
    skipping = open_dataset(f"imagefolder:{root}", skip_broken=True)
    assert report.fingerprints == skipping.describe()["fingerprints"]


def test_copies_in_test_are_counted(make_folder):
    counts = {"train/a": 30, "train/b": 30, "val/a": 5, "val/b": 5}
    root = make_folder("pets", counts)
    for number in range(3):
        (root / f"val/a/copy{number}.png").write_bytes((root / f"train/b/{number:03}.png").read_bytes())
    (root / "val/b/again.png").write_bytes((root / "val/b/000.png").read_bytes())
    report = check(f"imagefolder:{root}")
    assert report.ok
    in_test = report.duplicates["train and test"] + report.duplicates["validation and test"]
    assert in_test == 3
    assert report.duplicates["within test"] == 1
    assert report.duplicates["train and validation"] == 0
    assert any("test images are byte for byte in both" in warning for warning in report.warnings)
    assert any("1 test images are copies of each other" in warning for warning in report.warnings)


def test_lopsided_classes_are_warned_about(make_folder):
    report = check(f"imagefolder:{make_folder('pets', {'a': 200, 'b': 10})}")
    assert report.ok
    assert any("largest class" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("counts", "word"),
    [({"a": 5}, "one class"), ({"a": 9, "b": 1}, "different image"), ({"train/a": 9}, "one class")],
)
def test_what_would_be_refused_is_a_problem_not_a_crash(make_folder, counts, word):
    report = check(f"imagefolder:{make_folder('pets', counts)}")
    assert not report.ok
    assert word in report.problems[-1]


def test_a_set_of_broken_images_only_is_reported(make_folder):
    root = make_folder("photos", {".": 3})
    for path in root.iterdir():
        path.write_bytes(b"x")
    report = check(f"imagefolder:{root}")
    assert not report.ok
    assert len(report.broken) == 3


def test_nothing_to_look_at_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing at"):
        check(f"imagefolder:{tmp_path}/nowhere")
