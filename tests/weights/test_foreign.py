"""Files that others wrote are read whatever harmless things lie in them, and say what they are otherwise."""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mimbench.checkpoint import read_weights
from mimbench.errors import UserError
from mimbench.weights import foreign

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
