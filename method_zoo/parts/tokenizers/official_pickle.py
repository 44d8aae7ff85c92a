"""Reads a pickled ``dall_e`` encoder without the package and without running what a file may bring.

A pickle names classes and functions for the reader to call; that is how it can run code. Here every
class of the official module tree becomes ``Stored``, which does nothing, a handful of functions that
build tensors are let through, and any other name is an error.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class Stored:
    """Stands for a module of the file: keeps the attributes that were stored, has no behaviour."""

    dump_patches = False  # torch asks this of a module whose stored source code differs


MODULES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)


def load(path: Path) -> Any:
    """What the file holds: containers, tensors and ``Stored`` modules.

    Raises pickle.UnpicklingError for a file that names anything else.
    """
    if zipfile.is_zipfile(path):  # what PyTorch writes since 1.6
        with torch.serialization.safe_globals([(Stored, name) for name in MODULES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    if tarfile.is_tarfile(path):  # before 0.1.10, read by unpacking it to disk
        raise pickle.UnpicklingError("a tar archive")
    # The stream format of PyTorch before 1.6. With whole modules weights_only refuses it, whatever is
    # declared safe, as it keeps each module's source code beside it.
    restricted = ModuleType("restricted_pickle")
    vars(restricted).update(
        Unpickler=_Unpickler, load=lambda file, **kwargs: _Unpickler(file, **kwargs).load()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this source code is not the one in the file
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)


class _Unpickler(pickle.Unpickler):
    """Finds the names below and no other. Functions are wrapped, so that a file cannot alter torch's."""

    def __init__(self, file: Any, **kwargs: Any):
        super().__init__(file, **kwargs)
        self._names = {
            **dict.fromkeys(MODULES, type("Stored", (Stored,), {})),
            "collections.OrderedDict": OrderedDict,
            "__builtin__.set": set,  # as Python 2 called it, and as torch writes it
            "torch.device": torch.device,
            "torch._utils._rebuild_tensor_v2": lambda *args: torch._utils._rebuild_tensor_v2(*args),
            "torch._utils._rebuild_parameter": lambda *args: torch._utils._rebuild_parameter(*args),
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"the file names {module}.{name}") from None


def state_dict(module: Stored) -> dict[str, Tensor]:
    """Names and tensors of a stored module, as its own ``state_dict`` would give them."""
    return _collect(module, depth=0)


def _collect(module: Any, depth: int) -> dict[str, Tensor]:
    stored = vars(module) if isinstance(module, Stored) and depth < 16 else {}  # a file may hold a loop
    state = {}
    for name, value in [*_items(stored, "_parameters"), *_items(stored, "_buffers")]:
        if isinstance(value, Tensor):
            state[name] = value.detach()
    for name, child in _items(stored, "_modules"):
        state |= {f"{name}.{inner}": value for inner, value in _collect(child, depth + 1).items()}
    return state


def _items(stored: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    value = stored.get(kind)
    return [(str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else []
