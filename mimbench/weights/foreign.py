"""Reads files that others wrote, without running any of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mimbench.errors import UserError


class UnreadableError(UserError):
    """A file that is no whole file of weights, so that another copy of it may help."""


def read(path: Path) -> Any:
    """The content of a foreign file: nested containers with tensors; UnreadableError where there is none."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UnreadableError(
                f"{path} is not a readable safetensors file ({error}); fetch it again"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreadableError(f"{path} cannot be read ({reason}); fetch it again") from error


def state_dict(content: Any, containers: Sequence[Sequence[str]], path: Path) -> Mapping[str, Tensor]:
    """The tensors by name that lie under the first of several ways into ``content``.

    Raises UserError where none leads to tensors, naming what is there.
    """
    for keys in containers:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and inner and all(isinstance(v, Tensor) for v in inner.values()):
            return inner
    there = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    wanted = " or ".join(".".join(keys) or "the file itself" for keys in containers)
    raise UserError(f"{path} has no state dict under {wanted}; it holds {there[:300]}")
