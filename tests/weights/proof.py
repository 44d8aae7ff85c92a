"""What a proof of a conversion is, and where official states come from.

A family of files adds ``proofs/<its key>.py`` with ``PROOFS``: names and functions that give a ``Proof``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from mimbench.checkpoint import load_encoder
from mimbench.encoder import Encoder
from mimbench.weights.convert import convert
from mimbench.weights.entry import Entry
from tests.parity.records import Official
from tests.parity.records import read as read_record

FIGURES = Path(__file__).parents[1] / "parity" / "figures"


@dataclass(frozen=True)
class Proof:
    """An official file of small size, images, and the tokens that the reference gives.

    entry: of the file, sizes among its options. content: what ``torch.save`` puts into it. images: normalised
    [B, 3, S, S], float64. cls [B, D] or None, patches [B, n, D]: through the final norm, float64. mask, fill:
    as of ``Backbone.encode``, where the reference saw part of the images. reference: what gave the tokens.
    tolerance: absolute; the computation is float64 on both sides, fixed tables are float32.
    """

    entry: Entry
    content: Any
    images: Tensor
    cls: Tensor | None
    patches: Tensor
    reference: str
    mask: Tensor | None = None
    fill: Literal["drop", "token"] = "drop"
    tolerance: float = 1e-6


Proofs = Mapping[str, Callable[[], Proof]]


def all_proofs() -> dict[str, Proofs]:
    """The proofs of each module of ``proofs``, by family."""
    from . import proofs

    names = [module.name for module in pkgutil.iter_modules(proofs.__path__) if module.name[0] != "_"]
    return {name: importlib.import_module(f"{proofs.__name__}.{name}").PROOFS for name in names}


def small(name: str, **changes: Any) -> Entry:
    """The catalogue's entry ``name`` with changes, such as ``image_size=32`` and sizes in ``options``."""
    from mimbench.weights.entries import find_entry

    entry = find_entry(name)
    options = entry.options | changes.pop("options", {})
    return entry.model_copy(update={**changes, "options": options})


def record(method: str, case: str) -> Official:
    """A full record of an official run; skips the test where ``MIMBENCH_PARITY`` names no folder with it."""
    if "MIMBENCH_PARITY" not in os.environ:
        pytest.skip("MIMBENCH_PARITY names no folder of official records")
    return read_record(Path(os.environ["MIMBENCH_PARITY"]) / method / f"golden{'_' * bool(case)}{case}.pt")


def figure(method: str, case: str) -> Official:
    """A shipped run of official code, weights by formula (names, shapes and numbers; no fixed tables)."""
    return read_record(FIGURES / method / f"{case}.json")


def part(run: Official, module: str) -> dict[str, Tensor]:
    """The state dict of one module of a run, as the official code would save it (float64)."""
    start = f"{module}/"
    return {name.removeprefix(start): value for name, value in run.state.items() if name.startswith(start)}


def images_of(size: int, batch: int = 2, seed: int = 0) -> Tensor:
    """Normalised images [batch, 3, size, size], float64."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


def convert_proof(proof: Proof, folder: Path) -> Encoder:
    """The encoder that a proof's file becomes in a folder."""
    source = folder / "official.pth"
    torch.save(proof.content, source)
    return load_encoder(convert(source, proof.entry, folder / "encoder.safetensors").path)
