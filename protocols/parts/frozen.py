"""Frozen features and labels as tensors, and their standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimbench.spec import Readout

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings


def read(
    encoder: Encoder, data: Dataset, around: Surroundings, readouts: Sequence[Readout], split: Split
) -> dict[Readout, Tensor]:
    """Features float32 [N, D] of each readout, where protocols compute."""
    arrays = around.features.get(
        encoder, split, readouts, crop_pct=data.defaults.crop_pct, report=around.report
    )
    device = computing_device(encoder)  # asked after the store has put the encoder where it computes
    return {readout: torch.from_numpy(np.asarray(array)).to(device) for readout, array in arrays.items()}


def labels_of(split: Split, encoder: Encoder) -> Tensor:
    """Labels int64 [N], where protocols compute."""
    assert split.labels is not None, "Protocol.check refuses unlabelled data"
    return torch.from_numpy(np.ascontiguousarray(split.labels, np.int64)).to(computing_device(encoder))


def computing_device(encoder: Encoder) -> torch.device:
    """The encoder's, unless that has no float64 (Apple's), which statistics and votes are summed in."""
    device = encoder.mean.device
    return torch.device("cpu") if device.type == "mps" else device


def layer_at(share: float, depth: int) -> int:
    """The block after ``share`` of ``depth`` blocks, counted from the end: 3/4 of 12 is the 9th, -4."""
    return max(1, int(share * depth)) - depth - 1


def layers_at(shares: Sequence[float], depth: int) -> tuple[dict[float, int], list[str]]:
    """The different blocks after these shares of the depth, and sentences on what was left out."""
    found: dict[float, int] = {}
    notes = []
    for share in dict.fromkeys(shares):
        layer = layer_at(share, depth)
        if layer in found.values():
            notes.append(f"layer {share:g} left out: at a depth of {depth} another one equals it")
        else:
            found[share] = layer
    return found, notes


class Standard(NamedTuple):
    """Mean and 1 / standard deviation of each feature, [D]."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised features, [N, D]."""
        return (features - self.mean).mul_(self.scale)


def standard(features: Tensor, eps: float = 0.0) -> Standard:
    """Standardisation by the statistics of ``features`` [N, D]: 1 / sqrt(variance + eps).

    A feature that never changes gets a scale of 0: on other images it may, and dividing by nothing would
    let it outweigh all others. Sums are taken in float64, block by block.
    """
    count, width = features.shape
    blocks = features.split(max(1, 2**21 // width))
    mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / count
    squares = torch.stack([(block.double() - mean).square_().sum(0) for block in blocks]).sum(0)
    scale = (squares / count + eps).rsqrt()
    scale[features.amin(0) == features.amax(0)] = 0
    return Standard(mean.float(), scale.float())
