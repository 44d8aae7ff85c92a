"""A small catalogue with a file of MAE's layout behind a server on this machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from mimbench.weights.convert import convert
from mimbench.weights.entry import Entry, Mirror

from .proofs.mae import whole_images


def official(**changes: Any) -> bytes:
    """A small file in the layout of ``mae``, its state dict changed: None takes a tensor away."""
    state = {name: tensor.float() for name, tensor in whole_images().content["model"].items()}
    state = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    return file.getvalue()


def entry(*urls: str, name: str = "mae@vit_base", **known: Any) -> Entry:
    """The entry of such a file with these mirrors. known: of each mirror."""
    mirrors = tuple(Mirror(url=url, **known) for url in urls)
    return whole_images().entry.model_copy(update={"name": name, "mirrors": mirrors})


def converted(folder: Path, name: str = "mae@vit_base", **changes: Any) -> Path:
    """An encoder of ours out of ``official(**changes)``, called ``name``.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "official.pth"
    source.write_bytes(official(**changes))
    target = folder / f"{name}.safetensors"
    convert(source, entry("https://example.org/official.pth", name=name), target)
    return target
