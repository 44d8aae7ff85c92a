"""``mimbench doctor`` must see what is really there, and fail only where something needed is missing."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from mimbench import doctor, torchvision_compat


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def named(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


def test_this_environment_is_healthy_and_told_as_it_is(tmp_path):
    checks = doctor.examine(tmp_path / "not" / "yet" / "there")
    assert doctor.healthy(checks), [check for check in checks if check.status == "missing"]
    assert version("torch") in named(checks, "torch").found
    assert ("stand-ins" in named(checks, "torchvision's operators").found) == torchvision_compat.active
    assert str(tmp_path / "cache") in named(checks, "cache folder").found
    assert not (tmp_path / "not").exists(), "looking at the results folder must not create it"
    assert all(check.advice for check in checks if check.status != "ok")


def test_every_dependency_and_extra_is_looked_at():
    checks = doctor.examine()
    names = {check.name for check in checks}
    assert {"torch", "torchvision", "timm", "lightning-fabric", "pandas", "pyarrow", "typer"} <= names
    assert {check.name for check in checks if check.group == "extras"} - {"mmcv's operators"} == {
        "clip", "dense", "robustness", "hub", "cluster", "docs", "test"
    }  # fmt: skip


def without(monkeypatch, missing):
    def pretend(name):
        if name in missing:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", pretend)


def test_a_missing_package_is_named_with_its_command_and_fails(monkeypatch):
    without(monkeypatch, {"timm"})
    checks = doctor.examine()
    check = named(checks, "timm")
    assert check.status == "missing"
    assert check.advice.startswith('pip install "timm')
    assert not doctor.healthy(checks)


def test_an_absent_extra_names_what_it_lacks_and_does_not_fail(monkeypatch):
    without(monkeypatch, {"datasets"})
    checks = doctor.examine()
    check = named(checks, "hub")
    assert (check.status, check.advice) == ("absent", 'pip install "mimbench[hub]"')
    assert "datasets" in check.found
    assert doctor.healthy(checks)


def test_a_version_outside_the_range_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "numpy" else version(name))
    check = named(doctor.examine(), "numpy")
    assert check.status == "warn"
    assert "0.0.1" in check.found
    assert ">=" in check.advice


def test_a_torchvision_that_does_not_load_is_missing(monkeypatch):
    real = doctor.importlib.import_module

    def fail(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    check = named(doctor.examine(), "import torchvision")
    assert check.status == "missing"
    assert "nms does not exist" in check.found


def test_a_nearly_full_disk_and_a_file_in_the_way_are_seen(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    blocked = named(doctor.examine(tmp_path / "file" / "results"), "results folder")
    assert blocked.status == "missing"
    assert "not a folder" in blocked.found
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    checks = doctor.examine(tmp_path)
    assert {named(checks, name).status for name in ("results folder", "cache folder")} == {"warn"}
    assert doctor.healthy(checks)


def test_a_folder_that_cannot_be_written_is_missing(tmp_path, monkeypatch):
    real = os.access
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and real(path, mode))  # root may all
    check = named(doctor.examine(closed / "results"), "results folder")
    assert check.status == "missing"
    assert "--out" in check.advice


@pytest.mark.parametrize(("threads", "cores", "variable", "status"), [
    (4, 4, None, "ok"), (1, 4, "1", "warn"), (8, 2, None, "warn"), (1, 1, "1", "ok"),
])  # fmt: skip
def test_threads_that_waste_or_fight_over_cores_are_a_warning(monkeypatch, threads, cores, variable, status):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    check = doctor._cores(threads)
    assert check.status == status
    assert bool(check.advice) == (status == "warn")


def test_a_driver_without_a_gpu_build_of_torch_is_a_warning(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this torch sees its GPU")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = named(doctor.examine(), "GPU")
    assert check.status == "warn"
    assert "sees no GPU" in check.found


def dense_checks(checks):
    return {check.name: check for check in checks if check.group == "extras"}


def test_the_dense_extra_says_where_its_operators_are():
    pytest.importorskip("mmcv", reason="the extra 'dense' is not installed")
    from mimbench.openmm import operators

    found = dense_checks(doctor.examine())
    assert found["dense"].status == "ok"
    words = {"compiled": "compiled", "stand-in": "torchvision's nms and roi_align stand in"}
    assert words[operators()] in found["mmcv's operators"].found


def test_the_maintained_fork_is_as_good_as_what_it_forked(monkeypatch):
    pytest.importorskip("mmcv", reason="the extra 'dense' is not installed")
    forked = {name: others[0] for name, others in doctor.FORK.items()}

    def pretend(name):
        if name in forked:
            raise PackageNotFoundError(name)
        return "9.9" if name in forked.values() else version(name)

    monkeypatch.setattr(doctor, "version", pretend)
    assert "mmdet 9.9 of onedl-mmdetection" in dense_checks(doctor.examine())["dense"].found


def test_two_packages_of_the_same_modules_are_a_warning(monkeypatch):
    pytest.importorskip("mmcv", reason="the extra 'dense' is not installed")
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "onedl-mmcv" else version(name))
    check = dense_checks(doctor.examine())["dense packages"]
    assert (check.status, "mmcv-lite and onedl-mmcv" in check.found) == ("warn", True)


def test_dense_packages_that_do_not_load_are_named_with_what_to_do(monkeypatch):
    pytest.importorskip("mmcv", reason="the extra 'dense' is not installed")
    real = doctor.importlib.import_module

    def fail(name):
        if name == "mmdet":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    checks = doctor.examine()
    check = dense_checks(checks)["import mmdet, mmseg"]
    assert (check.status, check.advice) == ("warn", "apt-get install libgl1 libglib2.0-0")
    assert "libGL" in check.found
    assert doctor.healthy(checks), "runs without segmentation and detection go on"
