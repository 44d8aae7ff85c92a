from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import check, open_dataset
from mimbench.data import scan as scanning
from mimbench.data.images import decode
from mimbench.data.sources.imagefolder import ImageFiles
from mimbench.data.store import store_side
from mimbench.errors import UserError


def everything(data) -> list[bytes]:
    splits = (data.train, data.validation) + ((data.open_test(),) if data.classes else ())
    return [s.image(i).tobytes() + repr(s.image(i).shape).encode() for s in splits for i in range(len(s))]


def stores(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "data" / "stores").iterdir() if p.is_dir())


def run(code: str, *arguments: str, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_the_store_gives_each_samples_own_pixels(make_folder, noise, tmp_path):
    root = make_folder("pets", {"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1})
    (root / "train/a/000.png").unlink()  # shapes of their own: tall, wide, single pixel
    for i, (height, width) in enumerate([(5, 30), (30, 5), (1, 1)]):
        Image.fromarray(noise(100 + i, height, width)).save(root / f"train/b/x{i}.png")
    data = open_dataset(f"imagefolder:{root}")
    assert data.train.storage == "prepared"
    assert len(data.train) == 7
    for i in range(len(data.train)):
        assert np.array_equal(data.train.image(i), np.array(Image.open(root / data.train.sample_id(i))))


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_streamed_and_prepared_pixels_are_the_same(kind, make_folder, make_parquet, monkeypatch, own_cache):
    size = {"height": 60, "width": 90}
    if kind == "parquet":
        path = make_parquet("train.parquet", [0, 1] * 20, **size)
    else:
        path = make_folder("pets", {"a": 20, "b": 20}, **size)
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", "0")
    streamed = open_dataset(f"{kind}:{path}", image_size=28)
    assert streamed.train.storage == "streamed"
    pixels = everything(streamed)
    assert (
        everything(open_dataset(f"{kind}:{path}", image_size=28)) == pixels
    )  # from what was laid out before
    assert all("encoded" in name for name in stores(own_cache))
    monkeypatch.delenv("MIMBENCH_STORE_LIMIT_GB")
    prepared = open_dataset(f"{kind}:{path}", image_size=28)
    assert prepared.train.storage == "prepared"
    assert everything(prepared) == pixels
    assert prepared.fingerprint == streamed.fingerprint


def test_large_images_come_down_to_the_store_size_and_small_ones_never_go_up(make_folder, noise):
    root = make_folder("photos", {".": 10}, height=64, width=100)
    Image.fromarray(noise(99, 10, 80)).save(root / "z.png")
    data = open_dataset(f"imagefolder:{root}", image_size=28)
    assert store_side(28) == 32
    assert store_side(224) == 256
    for i in range(len(data.train)):
        original = Image.open(root / data.train.sample_id(i))
        if min(original.size) <= 32:
            expected = np.array(original)
        else:
            expected = np.array(original.resize((50, 32), Image.Resampling.BICUBIC))
        assert np.array_equal(data.train.image(i), expected)


def test_a_second_opening_reads_no_image_and_a_changed_file_is_noticed(make_folder, encoded, monkeypatch):
    root = make_folder("pets", {"a": 70, "b": 80})
    first = open_dataset(f"imagefolder:{root}")
    checked = []
    original = ImageFiles.inspect
    monkeypatch.setattr(ImageFiles, "inspect", lambda self, c: checked.append(c) or original(self, c))
    report = []
    again = open_dataset(f"imagefolder:{root}", report=report.append)
    assert checked == report == []
    assert again.fingerprint == first.fingerprint
    assert everything(again) == everything(first)

    (root / "b/079.png").write_bytes(encoded(1234, height=9))
    changed = open_dataset(f"imagefolder:{root}", report=report.append)
    assert changed.fingerprint != first.fingerprint
    assert encoded(1234, height=9) in checked
    assert len(checked) < 70  # a piece of the files, not all
    assert {p.stage for p in report} == {"checking images", "preparing images"}
    assert report[-1].done == 1.0


def test_removing_and_adding_files_never_mixes_up_what_is_remembered(make_folder, encoded, tmp_path):
    root = make_folder("pets", {"a": 70, "b": 70})
    (root / "b/030.png").write_bytes(b"")
    open_dataset(f"imagefolder:{root}", skip_broken=True)
    (root / "a/010.png").unlink()
    (root / "a/0000.png").write_bytes(encoded(999))
    (root / "b/100.png").write_bytes(b"no image")
    remembered = open_dataset(f"imagefolder:{root}", skip_broken=True)
    anew = open_dataset(f"imagefolder:{root}", skip_broken=True, cache=tmp_path / "other")
    assert remembered.describe() == anew.describe()
    assert everything(remembered) == everything(anew)
    assert remembered.skipped == ("b/030.png", "b/100.png")
    assert check(f"imagefolder:{root}").broken == {"b/030.png": "empty", "b/100.png": "not an image"}
    once_more = open_dataset(f"imagefolder:{root}", skip_broken=True)
    assert once_more.describe() == anew.describe()


def test_a_damaged_memory_of_the_files_is_read_anew(make_folder, own_cache):
    root = make_folder("pets", {"a": 10, "b": 10})
    first = open_dataset(f"imagefolder:{root}")
    (path,) = (own_cache / "data" / "scans").glob("*.npz")
    for content in (b"", b"garbage", path.read_bytes()[:200]):
        path.write_bytes(content)
        assert open_dataset(f"imagefolder:{root}").fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["pixels.bin", "offsets.npy", "shapes.npy", "meta.json"])
def test_a_damaged_store_is_built_again(make_folder, own_cache, name):
    root = make_folder("pets", {"a": 10, "b": 10})
    before = everything(open_dataset(f"imagefolder:{root}"))
    (store,) = stores(own_cache)
    path = own_cache / "data" / "stores" / store / name
    path.write_bytes(path.read_bytes()[:50])
    assert everything(open_dataset(f"imagefolder:{root}")) == before


# broken images


@pytest.fixture
def damaged(make_folder, encoded):
    """60 images of which five are broken, each in its own way."""
    root = make_folder("pets", {"a": 30, "b": 30}, height=40, width=40)
    jpeg = encoded(500, 64, 64, "JPEG")
    (root / "a/001.png").write_bytes(b"")
    (root / "a/002.png").write_text("<html>404</html>")
    png = (root / "a/003.png").read_bytes()
    (root / "a/003.png").write_bytes(png[: len(png) // 2])
    (root / "b/000.jpg").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    (root / "b/001.png").unlink()
    (root / "b/001.png").symlink_to(root / "nowhere.png")
    return root, ("a/001.png", "a/002.png", "a/003.png", "b/000.jpg", "b/001.png")


def test_broken_images_stop_preparation_and_are_all_named(damaged):
    root, broken = damaged
    with pytest.raises(UserError) as caught:
        open_dataset(f"imagefolder:{root}")
    message = str(caught.value)
    assert message.startswith("5 of the 61 images of imagefolder:pets cannot be read")
    assert all(name in message for name in broken)
    assert "a/001.png (empty)" in message
    assert "a/002.png (not an image)" in message
    assert "--skip-broken" in message
    assert "\n" not in message


def test_skipping_broken_images_leaves_them_out_of_everything(damaged, tmp_path):
    root, broken = damaged
    skipping = open_dataset(f"imagefolder:{root}", skip_broken=True)
    assert skipping.skipped == broken
    assert skipping.describe()["skipped"] == list(broken)
    names = {s.sample_id(i) for s in (skipping.train, skipping.validation) for i in range(len(s))}
    assert not names & set(broken)
    assert sum(skipping.describe()["sizes"].values()) == 56
    pixels = everything(skipping)
    for name in broken:
        (root / name).unlink()
    without = open_dataset(f"imagefolder:{root}")
    assert without.fingerprint == skipping.fingerprint
    assert without.skipped == ()
    assert everything(without) == pixels


def test_more_than_ten_broken_images_are_counted_not_listed(make_folder):
    root = make_folder("pets", {"a": 20, "b": 20})
    for number in range(13):
        (root / f"a/{number:03}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^13 of the 40 .* and 3 more; ") as caught:
        open_dataset(f"imagefolder:{root}")
    assert str(caught.value).count("not an image") == 10


def test_nothing_but_broken_images_is_refused_even_when_skipping(make_folder):
    root = make_folder("photos", {".": 3})
    for path in root.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match="not one image"):
        open_dataset(f"imagefolder:{root}", skip_broken=True)


def test_a_class_whose_images_are_all_broken_is_named(make_folder):
    root = make_folder("pets", {"a": 10, "b": 10, "c": 3})
    for path in (root / "c").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image of 1 of its 3 classes \(c\)"):
        open_dataset(f"imagefolder:{root}", skip_broken=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_asked_again_once_it_may_be_read(make_folder):
    root = make_folder("pets", {"a": 10, "b": 10})
    (root / "a/000.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        open_dataset(f"imagefolder:{root}")
    (root / "a/000.png").chmod(0o644)
    assert open_dataset(f"imagefolder:{root}").skipped == ()


def test_an_unreachable_file_is_asked_again_though_it_looks_unchanged(make_folder, monkeypatch):
    root = make_folder("pets", {"a": 10, "b": 10})
    original = ImageFiles.encoded

    def denied(self, index):
        if self.name(index) == "b/003.png":
            raise PermissionError(13, "Permission denied")
        return original(self, index)

    monkeypatch.setattr(ImageFiles, "encoded", denied)
    with pytest.raises(UserError, match=r"b/003.png \(Permission denied\)"):
        open_dataset(f"imagefolder:{root}")
    monkeypatch.setattr(ImageFiles, "encoded", original)
    assert open_dataset(f"imagefolder:{root}").skipped == ()


def test_an_image_that_vanishes_while_streaming_is_named(make_folder, monkeypatch):
    root = make_folder("pets", {"a": 10, "b": 10})
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", "0")
    data = open_dataset(f"imagefolder:{root}")
    (root / data.train.sample_id(0)).unlink()
    with pytest.raises(UserError, match=rf"{data.train.sample_id(0)} can no longer be read"):
        data.train.image(0)


# pixels of unusual files


def save(image: Image.Image, format: str = "PNG", **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def test_sixteen_bit_grey_is_scaled_not_clipped_to_white():
    ramp = np.linspace(0, 65535, 300).astype(np.uint16).reshape(15, 20)
    pixels = decode(save(Image.fromarray(ramp)))
    assert np.array_equal(pixels, np.repeat((ramp // 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_of_the_same_picture(mode, noise):
    picture = Image.fromarray(noise(0, 20, 30)).convert(mode)
    content = save(picture, "JPEG", quality=100) if mode == "CMYK" else save(picture)
    pixels = decode(content)
    assert pixels.shape == (20, 30, 3)
    assert np.array_equal(pixels, np.array(Image.open(io.BytesIO(content)).convert("RGB")))


def test_grey_levels_of_unknown_range_are_refused_by_name(make_folder):
    root = make_folder("pets", {"a": 5, "b": 5})
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "a/f.tif")
    with pytest.raises(UserError, match=r"a/f.tif \(32-bit grey levels"):
        open_dataset(f"imagefolder:{root}")


# crashes, crowds and full disks

OPEN = """
import sys, signal
from mimbench.data import check, open_dataset
def report(progress):
    if progress.stage == "preparing images" and len(sys.argv) > 2:
        print("writing", flush=True)
        signal.pause()
try:
    print(open_dataset(sys.argv[1], report=report).fingerprint)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_kill_in_mid_write_leaves_nothing_that_looks_finished(make_folder, own_cache):
    root = make_folder("pets", {"a": 150, "b": 150})
    other = make_folder("photos", {".": 200}, height=7)
    for path in (root, other):  # the second one also finds what the first left
        child = run(OPEN, f"imagefolder:{path}", "pause")
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()
        (left,) = stores(own_cache)
        assert left.endswith(".tmp")
        assert (own_cache / "data" / "stores" / left / "pixels.bin").stat().st_size > 0

    data = open_dataset(f"imagefolder:{root}")
    (finished,) = stores(own_cache)  # the other one's leftover is gone as well
    assert not finished.endswith(".tmp")
    for i in range(len(data.train)):
        assert np.array_equal(data.train.image(i), np.array(Image.open(root / data.train.sample_id(i))))


def test_several_processes_prepare_one_store_together(make_folder, own_cache):
    root = make_folder("pets", {"a": 150, "b": 150})
    children = [run(OPEN, f"imagefolder:{root}") for _ in range(3)]
    answers = {child.communicate()[0] for child in children}
    assert len(answers) == 1
    assert answers.pop().strip() == open_dataset(f"imagefolder:{root}").fingerprint
    assert len(stores(own_cache)) == 1


def test_a_full_disk_is_one_sentence_and_loses_nothing(make_folder, own_cache):
    root = make_folder("pets", {"a": 40, "b": 40}, height=64, width=64)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    child = run(limit + OPEN, f"imagefolder:{root}")
    answer, errors = child.communicate()
    assert answer.startswith("UserError there is no room left in"), errors
    assert "MIMBENCH_CACHE" in answer
    assert answer.count("\n") == 1
    assert stores(own_cache) == []
    assert len(open_dataset(f"imagefolder:{root}").train) == 64


def test_a_write_that_takes_only_a_part_is_continued(make_folder, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    root = make_folder("pets", {"a": 10, "b": 10})
    data = open_dataset(f"imagefolder:{root}")
    for i in range(len(data.train)):
        assert np.array_equal(data.train.image(i), np.array(Image.open(root / data.train.sample_id(i))))


def test_what_would_fill_the_disk_is_streamed(make_folder, monkeypatch):
    monkeypatch.setattr("mimbench.data.store.free_bytes", lambda folder: 1000)
    data = open_dataset(f"imagefolder:{make_folder('pets', {'a': 10, 'b': 10})}")
    assert data.train.storage == "streamed"


def test_a_cache_that_cannot_be_written_is_named(make_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written .*MIMBENCH_CACHE"):
        open_dataset("digits", cache=tmp_path / "file")


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_senseless_store_limit_is_refused(monkeypatch, value):
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", value)
    with pytest.raises(UserError, match=f"MIMBENCH_STORE_LIMIT_GB is '{value}'"):
        open_dataset("digits")


def test_the_cache_argument_goes_before_the_environment(tmp_path, own_cache):
    open_dataset("digits", cache=tmp_path / "here")
    assert (tmp_path / "here" / "data" / "stores").is_dir()
    assert not (own_cache / "data").exists()


@pytest.mark.parametrize("limit", ["16", "0"])
def test_a_split_travels_to_a_spawned_process(make_parquet, monkeypatch, limit):
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", limit)
    data = open_dataset(f"parquet:{make_parquet('train.parquet', [0, 1] * 20)}")
    sent = pickle.dumps(data.train)
    assert len(sent) < 10_000  # the path of the store, not its pixels
    copy = pickle.loads(sent)
    assert copy.image(3).tobytes() == data.train.image(3).tobytes()


def test_one_reading_at_a_time_and_no_lock_left_held(make_folder):
    # A second thread of a program opening the same set must wait for the first, not read beside it.
    root = make_folder("pets", {"a": 100, "b": 100})
    calls = []
    original = scanning._read
    with ThreadPool(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "_read", lambda *a: calls.append(1) or original(*a))
        prints = pool.map(lambda _: open_dataset(f"imagefolder:{root}").fingerprint, range(2))
    assert len(set(prints)) == 1
    assert len(calls) == 1
