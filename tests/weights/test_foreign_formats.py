"""Every format of weights is read, and what is none says what it is."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mimbench.errors import UserError
from mimbench.weights import foreign

from .test_foreign import assert_same, state_of, weights


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "safetensors under another name"])
def test_every_format_gives_the_same_tensors(form: str, tmp_path: Path) -> None:
    expected = {name: tensor.contiguous() for name, tensor in weights().items()}
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.bin")
    if form.startswith("safetensors"):
        save_file(expected, path)
    else:
        torch.save(expected, path, _use_new_zipfile_serialization=form == "zip")
    assert_same(state_of(path), expected)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_weights_saved_on_a_gpu_are_read_without_one(form: str, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(weights(), tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "w.pth", weights_only=True)
    state = state_of(tmp_path / "w.pth")
    assert_same(state, weights())
    assert {state[name].device.type for name in state} == {"cpu"}


def _zip(path: Path, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("_", "/"), content)


def _tar(path: Path, name: str) -> None:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"data"))


def _scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))


def _cut(path: Path, share: float, legacy: bool = False) -> None:
    torch.save({"w": torch.ones(10_000)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
OTHERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "nothing": ("w.pth", lambda path: path.write_bytes(b""), "is empty"),
    "a page": ("w.pth", lambda path: path.write_bytes(PAGE), "web page"),
    "a page as safetensors": ("w.safetensors", lambda path: path.write_bytes(PAGE), "web page"),
    "a store's error": ("w.pth", lambda path: path.write_bytes(b'<?xml version="1.0"?><Error>'), "web page"),
    "an error": (
        "w.bin",
        lambda path: path.write_bytes(b'{"error":"Invalid token"}'),
        "message about an error",
    ),
    "a pointer": (
        "w.bin",
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "git lfs pull",
    ),
    "text": (
        "w.pth",
        lambda path: path.write_bytes(b"no weights at all"),
        "no PyTorch and no safetensors",
    ),
    "half": ("w.pth", lambda path: _cut(path, 0.5), "cut short"),
    "nearly all": ("w.pth", lambda path: _cut(path, 0.99), "cut short"),
    "half of an old one": ("w.pth", lambda path: _cut(path, 0.5, legacy=True), "fetch it again"),
    "the head of an old one": ("w.pth", lambda path: _cut(path, 0.001, legacy=True), "fetch it again"),
    "half of safetensors": (
        "w.safetensors",
        lambda path: path.write_bytes(b"\x40" + bytes(9)),
        "fetch it again",
    ),
    "gzip": ("w.pth", lambda path: path.write_bytes(gzip.compress(b"x")), "gzip archive"),
    "a zip of weights": ("w.zip", lambda path: _zip(path, w_pth=b"x"), r"holds w/pth\); unpack it"),
    "two in one": (
        "w.pth",
        lambda path: _zip(path, a_data=b"", **{"a_data.pkl": b"\x80\x02}.", "b_data.pkl": b"\x80\x02}."}),
        "did not write",
    ),
    "tar": ("w.tar", lambda path: _tar(path, "w.pth"), "tar archive"),
    "a tar of PyTorch 0.1": ("w.pth", lambda path: _tar(path, "storages"), r"PyTorch before 0\.2"),
    "a program": ("w.pt", _scripted, r"TorchScript archive.*torch\.jit\.load"),
    "a plain pickle": ("w.pkl", lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "plain pickle"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_file_of_weights_says_what_it_is(case: str, tmp_path: Path) -> None:
    name, make, said = OTHERS[case]
    make(tmp_path / name)
    with pytest.raises(foreign.UnreadableError, match=said) as caught:
        foreign.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_a_wrong_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "w.pth", tmp_path / "model.safetensors.index.json"):
        with pytest.raises(UserError, match="check the path"):
            foreign.read(path)
