"""Official runs, one forward and backward pass each, read from either of two formats.

A figure (``.json``) has the loss and gradient norms of a run whose weights come from the formula; a full
record (``.pt``) has the state dict and intermediate outputs too. Names read ``module/name``, float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    state: dict[str, Tensor]  # parameters and buffers, and in full records the fixed tables too
    inputs: dict[str, Any]  # tensors, or nested lists of them
    draws: list[Tensor]  # what the official code drew, in order
    loss: float
    loss_float32: float
    loss_parts: dict[str, float]
    grad_norm: dict[str, float]  # of every parameter that gets a gradient
    outputs: dict[str, Any]  # tensors, or their statistics
    tolerance: float  # of the loss
    tolerance_rest: float  # of parts of the loss and, ten times as large and relative, of gradient norms


def is_run(path: Path) -> bool:
    """Whether a file is a run of a model; the others hold operators, masks and their statistics."""
    if path.suffix == ".pt":
        return path.name.startswith("golden")
    return path.suffix == ".json" and "kind" not in json.loads(path.read_text())


def read(path: Path) -> Official:
    """Read a figure or a full record."""
    return _read_figure(path) if path.suffix == ".json" else _read_full(path)


def _read_figure(path: Path) -> Official:
    record = json.loads(path.read_text())
    tolerance = 2e-6 if record["precision"] == "float32" else 1e-6 if record["float32_inside"] else 1e-9
    return Official(
        method=record["method"],
        case=record["case"],
        config=record["config"],
        state=_buffers(record)
        | {
            f"{module}/{name}": base + scale * fill(f"{module}/{name}", tuple(shape))
            for module, name, shape, base, scale in record["parameters"]
        },
        inputs={name: _nested(entry) for name, entry in record["inputs"].items()},
        draws=[tensor(entry) for entry in record["rng"]],
        loss=record.get("loss_with_formula_tables", record["loss"]),
        loss_float32=record["loss_float32"],
        loss_parts=record["loss_parts"],
        grad_norm=record["grad_norm"],
        outputs=record["outputs"] | {k: tensor(v) for k, v in record.get("outputs_verbatim", {}).items()},
        tolerance=tolerance,
        # Only the loss is also given for fixed tables of full precision; all else was computed with official
        # tables, which differ from these by up to 2e-7.
        tolerance_rest=max(tolerance, 2e-8) if "loss_with_formula_tables" in record else tolerance,
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
    # A run of code that forces float32 has one loss, a float32 number.
    tolerance = 2e-6 if float(record["loss"]) == float(record["loss_f32"]) else 1e-9
    if "cast to float32 inside" in record["notes"]:  # of a run in float64, of which then only the rest is
        tolerance = max(tolerance, 1e-6)
    return Official(
        method=record["method"],
        case=path.stem.removeprefix("golden_"),
        config=record["config"],
        state={f"{module}/{name}": _double(v) for module, part in state.items() for name, v in part.items()},
        inputs={name: each(value, _double) for name, value in record["inputs"].items()},
        draws=[_double(drawn) for _, drawn in record["rng"]],
        loss=float(record["loss"]),
        loss_float32=float(record["loss_f32"]),
        loss_parts={k: float(v) for k, v in outputs.items() if isinstance(v, Tensor) and v.ndim == 0},
        grad_norm=grad_norm,
        outputs=outputs,
        tolerance=tolerance,
        tolerance_rest=tolerance,
    )


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``change`` applied to every tensor of nested lists and dicts; the rest stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: each(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [each(item, change) for item in value]
    return value


def _nested(entry: Any) -> Any:
    """A figure's input: a tensor's description, a plain value, or nested lists and dicts of these."""
    if isinstance(entry, dict) and "shape" in entry:
        return tensor(entry)
    if isinstance(entry, dict):
        return {name: _nested(item) for name, item in entry.items()}
    if isinstance(entry, list):
        return [_nested(item) for item in entry]
    return entry


def _buffers(record: dict[str, Any]) -> dict[str, Tensor]:
    """The buffers that a figure describes fully: constant, listed or by the formula."""
    found = {}
    for entry in record.get("buffers", []):
        module, name, shape, kind, *rest = entry
        full = f"{module}/{name}"
        if kind == "constant":
            found[full] = torch.full(tuple(shape), rest[0], dtype=torch.float64)
        elif kind == "values":
            found[full] = torch.tensor(rest[0], dtype=torch.float64).view(tuple(shape))
        elif kind == "fill":
            base, scale = rest
            found[full] = base + scale * fill(full, tuple(shape))
    return found
