"""An encoder's backbone as mmdet and mmseg take backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mimbench.openmm.prepare import prepare

prepare()

from mmengine.model import BaseModule  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402


@MODELS.register_module(name="MimbenchBackbone")
class MapsBackbone(BaseModule):
    """Maps [B, D, H, W] of some layers of a backbone, see ``mimbench.encoder.Backbone.maps``.

    body: the backbone, as its ``rebuilt`` gave it. layers: from the end, -1 last.
    """

    def __init__(
        self,
        body: nn.Module,
        layers: Sequence[int] = (-1,),
        window: int | None = None,
        global_blocks: Sequence[int] = (),
    ):
        super().__init__()
        self.body: Any = body
        self.layers, self.window, self.global_blocks = tuple(layers), window, tuple(global_blocks)

    def init_weights(self) -> None:
        """Leaves the weights as they are: they are what is evaluated."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: normalised [B, 3, S, S]."""
        return self.body.maps(images, self.layers, window=self.window, global_blocks=self.global_blocks)
