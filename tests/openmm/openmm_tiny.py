"""A model of mmengine's and data, both of a few hundred numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mimbench.openmm import prepare
from mimbench.openmm.samples import Samples

prepare()

from mmengine.model import BaseModel  # noqa: E402

from mimbench.openmm.backbone import MapsBackbone  # noqa: E402

DEPTH = 3


class Body(nn.Module):
    """Patches of 4 pixels through ``DEPTH`` layers with dropout, behind the interface of a backbone."""

    depth = DEPTH

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 6, 4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, 2, 2))
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(6)

    def maps(self, images, layers, *, window=None, global_blocks=(), keys=None):
        x, taps = self.patch_embed(images) + self.pos_embed, []
        for block in self.blocks:
            x = x + nn.functional.dropout(block(x).tanh(), 0.2, self.training)
            taps.append(x)
        return tuple(taps[layer] for layer in layers)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^(?:patch_embed|pos_embed)\b", "blocks": [(r"^blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


class Model(BaseModel):
    """The mean colour of an image, out of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MapsBackbone(Body())
        self.head = nn.Linear(6, 3)
        self.seen: list[list[int]] = []

    def forward(self, inputs, targets, number, mode="tensor"):
        images = torch.stack(inputs)
        found = self.head(self.backbone(images)[-1].mean((2, 3)))
        if mode == "predict":
            return [{"colour": row, "number": one} for row, one in zip(found, number, strict=True)]
        if self.training:
            self.seen.append(list(number))
        return {"loss_colour": (found - torch.stack(targets)).square().mean(), "accuracy": found.mean()}


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def samples(count: int = 11) -> Samples:
    """Images of noise around a colour; the pipeline draws from numpy's global generator."""

    def load(index: int) -> dict[str, Any]:
        colour = np.random.default_rng(index).uniform(0, 1, 3)
        return {"index": index, "colour": colour}

    def add_noise(found: dict[str, Any]) -> dict[str, Any]:
        pixels = found["colour"][:, None, None] + np.random.normal(0, 0.3, (3, 8, 8))
        return {**found, "pixels": pixels}

    def pack(found: dict[str, Any]) -> dict[str, Any]:
        return {
            "inputs": torch.tensor(found["pixels"], dtype=torch.float32),
            "targets": torch.tensor(found["colour"], dtype=torch.float32),
            "number": found["index"],
        }

    return Samples(count, load, [add_noise, pack], {})
