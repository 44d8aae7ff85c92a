"""Weights load strictly, files are written all or nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from mimbench import checkpoint, files
from mimbench.errors import UserError


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[1].running_mean.uniform_()
    return module


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_weights_come_back_bit_for_bit_with_their_metadata(tmp_path: Path) -> None:
    saved, loaded = net(), net()
    digest = checkpoint.save_weights(tmp_path / "w.safetensors", saved, {"method": "mae"})
    metadata = checkpoint.load_weights(loaded, tmp_path / "w.safetensors")
    assert same(saved, loaded)
    assert metadata["method"] == "mae"
    assert digest == checkpoint.sha256(tmp_path / "w.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    checkpoint.save_weights(tmp_path / "w.safetensors", tied, {})
    untied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    checkpoint.load_weights(untied, tmp_path / "w.safetensors")
    assert torch.equal(untied[1].weight, tied[0].weight)


def test_every_missing_and_unexpected_name_is_in_the_error(tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "w.safetensors", nn.ModuleDict({"a": nn.Linear(2, 2)}), {})
    target = nn.ModuleDict({"b": nn.Linear(2, 2)})
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError) as caught:
        checkpoint.load_weights(target, tmp_path / "w.safetensors")
    for name in ("a.weight", "a.bias", "b.weight", "b.bias"):
        assert name in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_differences_named_beforehand_are_accepted_and_no_others(tmp_path: Path) -> None:
    source = nn.ModuleDict({"body": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    checkpoint.save_weights(tmp_path / "w.safetensors", source, {})
    target = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    checkpoint.load_weights(target, tmp_path / "w.safetensors", ["decoder."], ["head."])
    assert torch.equal(target["body"].weight, source["body"].weight)
    with pytest.raises(UserError, match=r"unexpected decoder\.bias"):
        checkpoint.load_weights(target, tmp_path / "w.safetensors", (), ["head."])
    with pytest.raises(UserError, match=r"lacks head\.bias"):
        checkpoint.load_weights(target, tmp_path / "w.safetensors", ["decoder."])


def test_another_shape_is_named_not_broadcast(tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "w.safetensors", nn.Linear(1, 4), {})
    with pytest.raises(UserError, match=r"'weight' has shape \[4, 1\], expected \[4, 3\]"):
        checkpoint.load_weights(nn.Linear(3, 4), tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_neither_saved_nor_loaded(tmp_path: Path, bad: float) -> None:
    from safetensors.torch import save_file

    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = bad
    with pytest.raises(UserError, match="'weight'"):
        checkpoint.save_weights(tmp_path / "w.safetensors", broken, {})
    assert not list(tmp_path.iterdir())
    save_file(broken.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="'weight'"):
        checkpoint.load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "w.safetensors", net(), {"format": checkpoint.FORMAT + 1})
    with pytest.raises(UserError, match="newer mimbench"):
        checkpoint.load_weights(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match=name):
        checkpoint.load_weights(net(), tmp_path / name)
    with pytest.raises(UserError, match="no weights file"):
        checkpoint.load_weights(net(), tmp_path / "absent.pth")


def test_a_foreign_pickle_never_runs_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(UserError):
        checkpoint.read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_foreign_state_dict_is_unwrapped(tmp_path: Path) -> None:
    source, target = net(), net()
    torch.save({"model": source.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    checkpoint.load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


class DiskFull:
    """Stands in for ``open``: a file that takes ``room`` bytes and then is full."""

    def __init__(self, room: int):
        self.room = room

    def __call__(self, path: Path, mode: str):
        file, disk = open(path, mode), self  # noqa: SIM115

        class Limited:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data: bytes) -> int:
                disk.room -= len(data)
                if disk.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(data)

            def __getattr__(self, name: str):
                return getattr(file, name)

        return Limited()


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch, room: int) -> None:
    weights, training = tmp_path / "w.safetensors", tmp_path / "checkpoint.pt"
    checkpoint.save_weights(weights, net(), {})
    checkpoint.save_checkpoint(training, {"identity": "x", "step": 1})
    before = weights.read_bytes(), training.read_bytes()
    monkeypatch.setattr(files, "open", DiskFull(room), raising=False)
    with pytest.raises(UserError, match=r"w\.safetensors: the disk is full"):
        checkpoint.save_weights(weights, nn.Linear(100, 100), {})
    monkeypatch.setattr(files, "open", DiskFull(room), raising=False)
    with pytest.raises(UserError, match=r"checkpoint\.pt: the disk is full"):
        checkpoint.save_checkpoint(training, {"identity": "x", "big": torch.zeros(10000)})
    monkeypatch.undo()
    assert (weights.read_bytes(), training.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "w.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_write_the_kernel_refuses_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    program = f"""
        import resource, torch
        from mimbench.checkpoint import save_checkpoint, load_checkpoint
        from mimbench.errors import UserError
        path = {str(tmp_path / "checkpoint.pt")!r}
        save_checkpoint(path, {{"identity": "x", "step": 1}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            save_checkpoint(path, {{"identity": "x", "big": torch.zeros(1_000_000)}})
        except UserError as error:
            assert "disk is full" in str(error), error
            assert load_checkpoint(path, "x")["step"] == 1
            print("as it should")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "as it should", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_run_or_damaged_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load_checkpoint(path, "x") is None
    checkpoint.save_checkpoint(path, {"identity": "x", "step": 3})
    assert checkpoint.load_checkpoint(path, "x")["step"] == 3
    with pytest.raises(UserError, match="other settings"):
        checkpoint.load_checkpoint(path, "y")
    for damage in (path.read_bytes()[:200], b"", b"hello"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="delete it"):
            checkpoint.load_checkpoint(path, "x")
