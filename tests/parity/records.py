"""Official runs, one forward and backward pass each, read from either of two formats.

A figure (``.json``) has the loss and gradient norms of a run whose weights come from the formula; a full
record (``.pt``) has the state dict and intermediate outputs too. Names read ``module/name``, float64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .formula import fill, tensor


@dataclass(frozen=True)
class Official:
    """What one official run was given and what came out."""

    method: str
    case: str
    config: dict[str, Any]
    state: dict[str, Tensor]  # parameters, and in full records the buffers and fixed tables too
    inputs: dict[str, Tensor]
    draws: list[Tensor]  # what the official code drew, in order
    loss: float
    loss_float32: float
    loss_parts: dict[str, float]
    grad_norm: dict[str, float]  # of every parameter that gets a gradient
    outputs: dict[str, Any]  # tensors, or their statistics
    tolerance: float


def read(path: Path) -> Official:
    """Read a figure or a full record."""
    return _read_figure(path) if path.suffix == ".json" else _read_full(path)


def _read_figure(path: Path) -> Official:
    record = json.loads(path.read_text())
    return Official(
        method=record["method"],
        case=record["case"],
        config=record["config"],
        state={
            f"{module}/{name}": base + scale * fill(f"{module}/{name}", tuple(shape))
            for module, name, shape, base, scale in record["parameters"]
        },
        inputs={name: tensor(entry) for name, entry in record["inputs"].items()},
        draws=[tensor(entry) for entry in record["rng"]],
        loss=record.get("loss_with_formula_tables", record["loss"]),
        loss_float32=record["loss_float32"],
        loss_parts=record["loss_parts"],
        grad_norm=record["grad_norm"],
        outputs=record["outputs"] | {k: tensor(v) for k, v in record.get("outputs_verbatim", {}).items()},
        tolerance=2e-6 if record["precision"] == "float32" else 1e-6 if record["float32_inside"] else 1e-9,
    )


def _read_full(path: Path) -> Official:
    record = torch.load(path, weights_only=True)
    state, grad_norm = record["state_dict"], record["grad_norm"]
    if all(isinstance(part, dict) for part in state.values()):
        grad_norm = {name.replace(".", "/", 1): norm for name, norm in grad_norm.items()}
    else:  # a single module
        state = {"model": state}
        grad_norm = {f"model/{name}": norm for name, norm in grad_norm.items()}
    outputs = record["outputs"]
    return Official(
        method=record["method"],
        case=path.stem.removeprefix("golden_"),
        config=record["config"],
        state={f"{module}/{name}": _double(v) for module, part in state.items() for name, v in part.items()},
        inputs={name: _double(value) for name, value in record["inputs"].items()},
        draws=[_double(drawn) for _, drawn in record["rng"]],
        loss=float(record["loss"]),
        loss_float32=float(record["loss_f32"]),
        loss_parts={k: float(v) for k, v in outputs.items() if isinstance(v, Tensor) and v.ndim == 0},
        grad_norm=grad_norm,
        outputs=outputs,
        tolerance=1e-9,
    )


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
