"""Weights are written and loaded one tensor at a time, byte for byte as safetensors writes them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mimbench import checkpoint, registry
from mimbench.errors import UserError
from mimbench.tensor_files import DTYPES, finite, open_tensors, write_tensors
from mimbench.unfilled import unfilled

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks" / "loading.py"


def every_type() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for number, dtype in enumerate(DTYPES):
        for name, shape in (("z.b", (3, number + 1)), ("a", (5,)), ("scalar", ()), ("nothing", (0, 4))):
            values = torch.randint(0, 2, shape, generator=draw) if dtype is torch.bool else torch.randn(shape)
            made[f"{name}.{dtype}"] = (values * 9).to(dtype)
    made['Ünïcode "quoted" \\ \n\x01\x7f 🖼'] = torch.ones(2)
    made["B"] = torch.ones(1)
    return made


@pytest.mark.parametrize("said", ["", "plain", 'é "quoted" \\ \t\x02 🖼 </script>'])
def test_the_bytes_are_those_of_safetensors(said: str, tmp_path: Path) -> None:
    tensors, metadata = every_type(), {"mimbench": said}
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return tensors[name]

    meta = {name: tensor.to("meta") for name, tensor in reversed(tensors.items())}
    digest = write_tensors(tmp_path / "w.safetensors", meta, read, metadata)
    assert (tmp_path / "w.safetensors").read_bytes() == save(tensors, metadata)
    assert digest == checkpoint.sha256(tmp_path / "w.safetensors")
    assert sorted(asked) == sorted(tensors), "each is asked for once"
    again, written = open_tensors(tmp_path / "w.safetensors")
    assert written == metadata
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_module_is_written_as_before_it_was_written_tensor_by_tensor(tmp_path: Path) -> None:
    """Checksums of products are part of records that are kept."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    module[3].weight = module[2].weight
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    assert not module[0].weight.is_contiguous()
    whole = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    written = {"mimbench": json.dumps({"format": checkpoint.FORMAT, "a": 1, "b": "é"}, sort_keys=True)}
    digest = checkpoint.save_weights(tmp_path / "w.safetensors", module, {"b": "é", "a": 1})
    assert (tmp_path / "w.safetensors").read_bytes() == save(whole, written)
    assert digest == checkpoint.sha256(tmp_path / "w.safetensors")


def test_a_tensor_that_is_not_as_announced_leaves_the_old_file(tmp_path: Path) -> None:
    path, like = tmp_path / "w.safetensors", {"a": torch.zeros(2), "b": torch.zeros(3)}
    write_tensors(path, like, like.__getitem__, {})
    before = path.read_bytes()
    for wrong in (torch.zeros(4), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="not as announced"):
            write_tensors(path, like, {**like, "b": wrong}.__getitem__, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_replaced_while_it_is_read_is_not_mixed_with_the_new(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mimbench.tensor_files.REOPEN", 1)
    path, old = tmp_path / "w.safetensors", {"a": torch.zeros(2), "b": torch.zeros(2)}
    write_tensors(path, old, old.__getitem__, {})
    tensors, _ = open_tensors(path)
    assert torch.equal(tensors["a"], old["a"])
    write_tensors(path, old, lambda name: old[name] + 1, {})
    with pytest.raises(UserError, match="changed while it was read"):
        tensors["b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_number_is_seen_wherever_it_is(dtype: torch.dtype) -> None:
    for size in (1, 2, 7, 31, 64, 1000, 40_003):
        values = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
        assert finite(values)
        for bad in (torch.nan, torch.inf, -torch.inf):
            for place in {0, size // 2, size - 1}:
                broken = values.clone()
                broken[place] = bad
                assert not finite(broken)
                assert not finite(broken.expand(2, size).t())
    assert finite(torch.zeros(0, dtype=dtype))
    assert finite(torch.tensor([True]))


def test_weights_that_are_bad_in_the_last_tensor_change_nothing(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    state["1.bias"] = torch.tensor([0.0, torch.nan])
    with pytest.raises(UserError, match=r"'1\.bias' of here holds NaN"):
        checkpoint.load_state(module, state, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# Building without drawing ----------------------------------------------------------------------------


class Tied(nn.Module):
    """Tied and listed parameters, buffers of both kinds, one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.kept = [self.a.bias]
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))])
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.absent = None
        self.register_parameter("none", None)


def test_an_unfilled_module_is_the_usual_one_but_for_its_numbers() -> None:
    usual, made = Tied(), unfilled(Tied)
    assert isinstance(made, Tied)
    assert list(made.state_dict()) == list(usual.state_dict())
    for one, other in zip(made.parameters(), usual.parameters(), strict=True):
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        assert one.requires_grad == other.requires_grad
        assert isinstance(one, nn.Parameter)
    assert made.b.weight is made.a.weight
    assert made.kept[0] is made.a.bias
    assert torch.equal(made.table, usual.table)
    checkpoint.load_state(made, usual.state_dict(), "here")
    for name, tensor in usual.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
    made.a(torch.ones(1, 3)).sum().backward()
    assert made.a.weight.grad is not None


class Looks(nn.Module):
    """Looks at the values that it begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 3.0))
        self.gain = self.weight.mean().item()


class Derives(nn.Module):
    """Keeps something made of the values that it begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 3.0))
        self.register_buffer("average", self.weight.detach().clone() / 2, persistent=False)


def test_a_module_that_needs_its_first_values_has_them() -> None:
    assert unfilled(Looks).gain == 3.0
    assert torch.equal(unfilled(Derives).average, torch.full((2,), 1.5))


def test_what_fails_to_be_built_says_why() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            raise RuntimeError("out of paint")

    with pytest.raises(RuntimeError, match="out of paint"):
        unfilled(Fails)
    assert not nn.Linear(2, 2).weight.is_meta


def test_other_modules_and_threads_are_built_as_ever() -> None:
    others: list[nn.Module] = []

    def build() -> nn.Module:
        thread = threading.Thread(target=lambda: others.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    torch.manual_seed(0)
    unfilled(build)
    (other,) = others
    assert not other.weight.is_meta
    assert other.weight.abs().sum() > 0
    assert not nn.Linear(2, 2).weight.is_meta


def test_an_encoder_is_loaded_without_drawing_weights_first(tmp_path: Path) -> None:
    backbone = registry.build_backbone("vit_micro_patch16", 32)
    metadata = {"backbone_config": backbone.config, "mean": [0.5] * 3, "std": [0.5] * 3}
    checkpoint.save_weights(tmp_path / checkpoint.ENCODER_FILE, backbone, metadata)
    before = torch.random.get_rng_state()
    loaded = checkpoint.load_encoder(tmp_path).backbone.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in backbone.state_dict().items())
    registry.build_backbone("vit_micro_patch16", 32)
    assert not torch.equal(torch.random.get_rng_state(), before), "building it draws nothing anyway"


# Memory ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_large_encoder_is_loaded_once_and_converted_in_passing(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loading", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.make(tmp_path, benchmark.entry(depth=4))  # as wide as a ViT-L: 206 MB

    def peaks(work: str) -> tuple[float, float]:
        command = [sys.executable, BENCHMARK, "--only", work, "--folder", tmp_path, "--depth", "4"]
        own = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=own)
        figures = json.loads(done.stdout)
        return figures["anonymous / file"], figures["resident / file"]

    own, resident = peaks("load")
    assert 0.9 <= own <= 1.3
    assert 0.9 <= resident <= 1.3
    own, resident = peaks("convert, PyTorch")
    assert own <= 0.2
    assert resident <= 1.3
    converted, encoder = (load_file(tmp_path / f"{name}.safetensors") for name in ("converted", "encoder"))
    assert converted.keys() == encoder.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in encoder.items())
