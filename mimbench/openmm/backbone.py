"""An encoder's backbone as mmdet and mmseg take backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.openmm.prepare import prepare

prepare()

from mmengine.model import BaseModule  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402


@MODELS.register_module(name="MimbenchBackbone")
class MapsBackbone(BaseModule):
    """Maps [B, D, H, W] of some layers of a backbone, see ``mimbench.encoder.Backbone.maps``.

    body: the backbone, as its ``rebuilt`` gave it. layers: from the end, -1 last. final_norm: whether the
    encoder's last norm is put on every map. frozen: in eval mode and without gradients.
    """

    def __init__(
        self,
        body: nn.Module,
        layers: Sequence[int] = (-1,),
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        final_norm: bool = False,
        frozen: bool = False,
    ):
        super().__init__()
        self.body: Any = body
        self.layers, self.window, self.global_blocks = tuple(layers), window, tuple(global_blocks)
        self.final_norm, self.frozen = final_norm, frozen
        if frozen:
            body.requires_grad_(False)
            body.train(False)

    def init_weights(self) -> None:
        """Leaves the weights as they are: they are what is evaluated."""

    def train(self, mode: bool = True) -> MapsBackbone:
        super().train(mode)
        if self.frozen:
            self.body.train(False)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: normalised [B, 3, S, S]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.body.maps(images, self.layers, window=self.window, global_blocks=self.global_blocks)
            if self.final_norm:
                maps = tuple(self.body.final_norm(x.movedim(1, -1)).movedim(-1, 1) for x in maps)
        return maps
