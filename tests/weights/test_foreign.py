"""Files that others wrote are read whatever harmless things lie in them, and say what they are otherwise."""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import json
import pathlib
import pickle
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mimbench.checkpoint import read_weights
from mimbench.errors import UserError
from mimbench.weights import foreign
from mimbench.weights.convert import convert

from .proofs.mae import whole_images

WHOLE = ((), ("model",))


def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=draw),
        "a.bias": torch.randn(3, generator=draw).half(),
        "b": torch.arange(6).reshape(2, 3).t(),
        "c": torch.tensor(2.5, dtype=torch.float64),
        "shared": torch.ones(5)[1:3],
    }


def assert_same(state: foreign.Tensors, expected: dict[str, torch.Tensor]) -> None:
    assert dict(state.shapes) == {name: tensor.shape for name, tensor in expected.items()}
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


def state_of(path: Path) -> foreign.Tensors:
    return foreign.state_dict(foreign.read(path), WHOLE, path)


# What lies beside the tensors ------------------------------------------------------------------------


@contextmanager
def packages(*names: str) -> Iterator[Callable[[str, type], type]]:
    """Classes under foreign names, for as long as a file is written; gives what makes one."""
    before = dict(sys.modules)

    def make(name: str, base: type = object) -> type:
        module, _, own = name.rpartition(".")
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            sys.modules.setdefault(part, ModuleType(part))
        made = type(own, (base,), {"__module__": module})
        setattr(sys.modules[module], own, made)
        return made

    try:
        yield make
    finally:
        for name in sys.modules.keys() - before.keys():
            del sys.modules[name]


def plain_extras() -> dict[str, Any]:
    counted = collections.defaultdict(list)
    counted["loss"].append(1.0)
    return {
        "args": argparse.Namespace(lr=1e-3, output=pathlib.Path("out"), size=(224, 224)),
        "counted": counted,
        "ordered": collections.OrderedDict(a=collections.Counter("aab")),
        "recent": collections.deque([1, 2], maxlen=4),
        "best": np.float64(0.5),
        "curve": np.arange(3.0),
        "names": np.array(["x", "y"]),
        "kind": np.dtype("int64"),
        "when": datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(hours=1),
        "sets": [{1, 2}, frozenset("ab"), range(3), slice(1, 2), 3 + 4j, b"bytes", None, True, 1 << 70],
        "types": [int, dict, list, str, torch.float16, torch.Size([2]), torch.device("cuda:1")],
        "version": torch.__version__,
    }


def released_extras(make: Callable[..., type]) -> dict[str, Any]:
    """What the checkpoints of well-known code hold, under the names of classes that need not be installed."""
    config = make("yacs.config.CfgNode", dict)(MODEL="swin")
    config.__dict__["__immutable__"] = True
    lightning = make("pytorch_lightning.utilities.parsing.AttributeDict", dict)(lr=0.1)
    node = make("omegaconf.nodes.AnyNode")()
    node.__dict__.update(_metadata=make("omegaconf.base.Metadata")(), _val=3, _parent=None)
    omega = make("omegaconf.dictconfig.DictConfig")()
    omega.__dict__.update(_content={"a": node}, _metadata=make("omegaconf.base.ContainerMetadata")())
    scaler = make("deepspeed.runtime.fp16.loss_scaler.LossScaler")()
    scaler.cur_scale = 1.0
    callback = make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    dictionary = make("fairseq.data.dictionary.Dictionary")()
    return {
        "config": config,
        "hyper_parameters": lightning,
        "cfg": omega,
        "loss_scaler": scaler,
        "callbacks": {callback: {"best_model_path": pathlib.PurePosixPath("x")}},
        "task_state": {"dictionary": dictionary},
    }


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_settings_beside_the_weights_do_not_keep_them_from_being_read(form: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "checkpoint.pth", weights()
    with packages() as make:
        content = {"model": expected, **plain_extras(), **released_extras(make)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert "omegaconf" not in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = foreign.read(path)
    assert_same(foreign.state_dict(content, WHOLE, path), expected)
    assert content["counted"] == {"loss": [1.0]}
    assert content["recent"] == [1, 2]
    assert content["config"] == {"MODEL": "swin"}
    assert content["args"].lr == 1e-3
    assert vars(content["cfg"])["_content"]["a"]._val == 3
    assert {type(content[name]) for name in ("best", "curve", "args", "cfg")} == {foreign.Stored}


def test_a_checkpoint_of_mmengine_is_read(tmp_path: Path) -> None:
    config = pytest.importorskip("mmengine.config")
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer()
    history.update(1.0)
    path, expected = tmp_path / "epoch_1.pth", weights()
    meta = {"cfg": config.ConfigDict(a=1, b={"c": 2}), "message_hub": {"log_scalars": {"loss": history}}}
    torch.save({"state_dict": expected, "meta": meta}, path)
    assert_same(read_weights(path)[0], expected)
    assert foreign.read(path)["meta"]["cfg"]["b"] == {"c": 2}


def test_an_optimiser_and_parameters_with_notes_are_read(tmp_path: Path) -> None:
    module, path = nn.Linear(3, 4), tmp_path / "checkpoint.pth"
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    module.weight.lr_scale = 0.5
    torch.save({"model": dict(module.named_parameters()), "optimizer": optimiser.state_dict()}, path)
    state = state_of(path)
    assert_same(state, {"weight": module.weight.detach(), "bias": module.bias.detach()})
    assert not state["weight"].requires_grad


def test_what_users_added_to_torchs_own_list_is_not_let_in_by_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": weights(), "net": nn.Linear(1, 1)}, path)
    with torch.serialization.safe_globals([nn.Linear]), pytest.raises(UserError, match=r"linear\.Linear"):
        foreign.read(path)


def test_a_state_dict_within_a_state_dict_keeps_its_name(tmp_path: Path) -> None:
    path, average = tmp_path / "base_imagenet.pt", {"w": torch.ones(2), "n": {"b": torch.zeros(1)}}
    torch.save({"model": {"w": torch.zeros(2), "_ema": average}}, path)
    expected = {"w": torch.zeros(2), "_ema.w": torch.ones(2), "_ema.n.b": torch.zeros(1)}
    assert_same(state_of(path), expected)


def test_what_is_no_state_dict_is_said_to_be_none(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.zeros(1)}
    loop["again"] = loop
    for content in (
        {"model": {"w": torch.zeros(1), "n": 3}, "epoch": 1},
        {"model": loop},
        torch.zeros(2),
        {},
    ):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match="no state dict under the file itself or model"):
            state_of(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
def test_tensors_that_are_no_plain_ones_are_refused(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are on their way out
        made = {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "meta": lambda: torch.empty(3, device="meta"),
        }[kind]()
        torch.save({"w": made}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"wants torch\._utils\._rebuild_\w+"):
        foreign.read(tmp_path / "x.pth")


# Formats ---------------------------------------------------------------------------------------------


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


# Files in parts --------------------------------------------------------------------------------------


def in_parts(folder: Path, form: str = "safetensors") -> tuple[Path, dict[str, torch.Tensor]]:
    state = {name: tensor.contiguous() for name, tensor in weights().items()}
    listed = {name: f"model-{number % 2}.{form}" for number, name in enumerate(state)}
    for shard in set(listed.values()):
        part = {name: tensor for name, tensor in state.items() if listed[name] == shard}
        save_file(part, folder / shard) if form == "safetensors" else torch.save(part, folder / shard)
    index = folder / f"model.{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return index, state


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_in_parts_is_one(form: str, tmp_path: Path) -> None:
    index, expected = in_parts(tmp_path, form)
    assert_same(state_of(index), expected)


def test_the_hubs_cache_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index, expected = in_parts(blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        (snapshot / path.name).symlink_to(path.rename(blobs / f"{number:064x}"))
    assert_same(state_of(snapshot / index.name), expected)


@pytest.mark.parametrize(
    "shard",
    ["../w.safetensors", "{}/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors", "link", ".."],
)
def test_an_index_does_not_lead_out_of_its_folder(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    (folder / "link").symlink_to(tmp_path / "w.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard.format(tmp_path)}}))
    with pytest.raises(UserError, match="does not lie in its folder"):
        foreign.read(index)


def test_an_index_that_its_files_belie_is_refused(tmp_path: Path) -> None:
    index, _ = in_parts(tmp_path)
    content = json.loads(index.read_text())
    listed = content["weight_map"]
    (other,) = set(listed.values()) - {listed["b"]}
    for change in ({"more": other}, {"b": other}):
        index.write_text(json.dumps({"weight_map": listed | change}))
        with pytest.raises(UserError, match=f"do not agree on where {next(iter(change))}"):
            foreign.read(index)
    index.write_text(json.dumps({"weight_map": {name: s for name, s in listed.items() if name != "b"}}))
    with pytest.raises(UserError, match="do not agree on where b"):
        foreign.read(index)
    for text in ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(UserError, match="is not the index of a file in parts"):
            foreign.read(index)
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    with pytest.raises(UserError, match="does not lie in its folder"):
        foreign.read(index)


def test_another_part_is_another_file(tmp_path: Path) -> None:
    index, _ = in_parts(tmp_path)
    before = foreign.sha256(index)
    assert before == foreign.sha256(index)
    part = tmp_path / "model-1.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(part).items()}, part)
    assert foreign.sha256(index) != before


# Conversion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["legacy", "safetensors", "in parts"])
def test_a_conversion_is_the_same_from_every_format(form: str, tmp_path: Path) -> None:
    proof = whole_images()
    state = {name: tensor.contiguous() for name, tensor in proof.content["model"].items()}
    torch.save(proof.content, tmp_path / "official.pth")
    expected = convert(tmp_path / "official.pth", proof.entry, tmp_path / "expected.safetensors")
    entry, source = proof.entry, tmp_path / "official.bin"
    if form == "legacy":
        torch.save(proof.content, source, _use_new_zipfile_serialization=False)
    else:
        entry = entry.model_copy(update={"container": ()})
        source = tmp_path / "official.safetensors"
        save_file(state, source)
        if form == "in parts":
            index = tmp_path / "official.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": dict.fromkeys(state, source.name)}))
            source = index
    made = convert(source, entry, tmp_path / "made.safetensors")
    assert (set(made.used), made.dropped, made.fresh) == (
        set(expected.used),
        expected.dropped,
        expected.fresh,
    )
    ours, theirs = load_file(made.path), load_file(expected.path)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_conversion_reads_no_tensor_to_know_its_shape(tmp_path: Path, monkeypatch) -> None:
    """Nor one it has no use for: a decoder, or an optimiser of twice the size."""
    from mimbench import tensor_files

    proof = whole_images()
    source = tmp_path / "official.safetensors"
    state = {name: tensor.contiguous() for name, tensor in proof.content["model"].items()}
    save_file({**state, "decoder_pred.weight": torch.ones(5)}, source)
    read: list[str] = []
    call = tensor_files._Reader.__call__
    monkeypatch.setattr(
        tensor_files._Reader, "__call__", lambda self, name: read.append(name) or call(self, name)
    )
    entry = proof.entry.model_copy(update={"container": ()})
    made = convert(source, entry, tmp_path / "encoder.safetensors")
    assert sorted(read) == sorted(made.used)
    read.clear()
    with pytest.raises(UserError, match=r"has nothing for the encoder's blocks\.3"):
        convert(source, entry.model_copy(update={"options": {**entry.options, "depth": 4}}), tmp_path / "x")
    assert read == []
