"""The published formula that weights and inputs of the figures come from.

A figure holds no weights: parameter ``name`` of module ``module`` is base + scale · fill(module/name), an
input base + scale · fill(input/name). ``fill`` hashes the name with FNV-1a (64 bit) and runs splitmix64's
finaliser over a counter; values lie in [-1, 1] and are exact in float16.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TORCH_TYPES = {"bool": torch.bool, "int64": torch.int64, "int32": torch.int64, "int16": torch.int64}


def fnv1a64(text: str) -> int:
    """The 64-bit FNV-1a hash of a text's UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1] that a name and a shape determine, float64."""
    counter = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name)) + counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((2 * unit - 1).astype(np.float16).astype(np.float64)).view(shape)


def tensor(entry: dict[str, Any]) -> Tensor:
    """A tensor as a figure writes it: by the formula, as nested lists, as a string of bits or sparse."""
    shape = tuple(entry["shape"])
    if "fill" in entry:
        return entry["base"] + entry["scale"] * fill(entry["fill"], shape)
    dtype = _TORCH_TYPES.get(entry["dtype"], torch.float64)
    if "bits" in entry:
        return torch.tensor([bit == "1" for bit in entry["bits"]]).view(shape).to(dtype)
    if "sparse" in entry:
        sparse = entry["sparse"]
        dense = torch.zeros(math.prod(shape), dtype=dtype)
        dense[torch.tensor(sparse["index"])] = torch.tensor(sparse["value"], dtype=dtype)
        return dense.view(shape)
    return torch.tensor(entry["values"], dtype=dtype).view(shape)
