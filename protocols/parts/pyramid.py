"""ViTDet's simple feature pyramid, which makes maps of five sizes out of one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.openmm import prepare

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import LayerNorm2d

prepare()

from mmcv.cnn import ConvModule  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

# Layer norm over channels at each place: the norm of all of ViTDet's convolutions.
NORM = {"type": "MimbenchLayerNorm2d", "eps": 1e-6}  # mmcv would make it 1e-5
MODELS.register_module(name=NORM["type"], module=LayerNorm2d)


@MODELS.register_module(name="MimbenchSimplePyramid")
class SimplePyramid(BaseModule):
    """Maps at 4, 2, 1, 1/2 and 1/4 times the side of the backbone's last one (arXiv:2203.16527, section 3).

    As in detectron2's ``SimpleFeaturePyramid``: two transposed convolutions, one, nothing, pooling by 2; then
    a 1x1 and a 3x3 convolution, all with layer norm; the smallest takes every second place of the one before.
    """

    def __init__(self, in_channels: int, out_channels: int = 256):
        super().__init__()
        half, quarter = max(1, in_channels // 2), max(1, in_channels // 4)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *scaled,
                ConvModule(width, out_channels, 1, norm_cfg=NORM, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=NORM, act_cfg=None),
            )
            for width, scaled in (
                (
                    quarter,
                    (
                        nn.ConvTranspose2d(in_channels, half, 2, 2),
                        LayerNorm2d(half),
                        nn.GELU(),
                        nn.ConvTranspose2d(half, quarter, 2, 2),
                    ),
                ),
                (half, (nn.ConvTranspose2d(in_channels, half, 2, 2),)),
                (in_channels, ()),
                (in_channels, (nn.MaxPool2d(2, 2),)),
            )
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """maps: one of [B, D, H, W]. Returns five [B, C, h, w] in fp32.

        In fp32 also under autocast, because mmdet brings boxes into the maps' type, and bfloat16 knows the
        places of an image of 1024 pixels only to 4.
        """
        (last,) = maps
        found = [level(last).float() for level in self.levels]
        return (*found, F.max_pool2d(found[-1], 1, stride=2))
