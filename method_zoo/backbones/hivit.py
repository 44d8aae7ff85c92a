"""HiViT: a vision transformer whose patches come out of MLPs on finer cells; iTPN's encoder is one, too."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

from method_zoo.backbones.blocks import NORM_EPS, LayerNorm
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.stemmed import Merge, Stemmed, scaled
from method_zoo.backbones.vit import ViT
from method_zoo.parts.patches import take
from mimbench.errors import UserError

CELLS = 4  # along a side of a patch, halved twice on the way

# zhangxiaosong18/hivit, self_supervised/models/models_hivit.py; sunsmarterjie/iTPN, CLIP_as_supervision/
# modeling_pretrain.py. HiViT's code counts a stage's blocks in pairs.
SIZES: dict[str, dict[str, Any]] = {
    "hivit_base_patch16": {"embed_dim": 512, "depth": 20, "num_heads": 8, "stem_depth": 4},
    "itpn_base_patch16": {"embed_dim": 512, "depth": 24, "num_heads": 8, "stem_depth": 3},
    "itpn_large_patch16": {"embed_dim": 768, "depth": 40, "num_heads": 12, "stem_depth": 2},
}


class HiViT(Stemmed, ViT):
    """HiViT (Zhang et al., 2023, arXiv:2205.14949), and the encoder of iTPN (Tian et al., 2023,
    arXiv:2211.12735) as its authors fine-tune it, without the feature pyramid.

    A patch is 4 x 4 cells, which go through two stages of MLPs and merging before the transformer. Nothing
    crosses the border of a patch there, so that hidden patches are left out, or replaced, as in any ViT.
    There is neither a class token nor a norm after the last block unless asked for: the official codes
    average the last block's tokens and train a norm behind that with the classifier.

    stem_depth: MLPs in each of the two stages. stem_mlp_ratio: their inner width over their own.
    options: of ``ViT``, which it is in all else.
    """

    stem_tensors = "cells|cells_norm"

    def __init__(
        self,
        *,
        stem_depth: int,
        stem_mlp_ratio: float = 3.0,
        cls_token: bool = False,
        final_norm: bool = False,
        **options: Any,
    ):
        super().__init__(cls_token=cls_token, final_norm=final_norm, **options)
        self.config |= {"stem_depth": stem_depth, "stem_mlp_ratio": stem_mlp_ratio}
        if self.embed_dim % CELLS or self.patch_size % CELLS or stem_depth < 1:
            raise UserError(
                f"{self.config['name']} takes a width and a patch size that are multiples of {CELLS} and at "
                f"least one MLP a stage; got {self.embed_dim}, {self.patch_size} and {stem_depth}"
            )
        del self.patch_embed
        widths, side = (self.embed_dim // 4, self.embed_dim // 2), self.patch_size // CELLS
        self.cells = nn.Conv2d(3, widths[0], side, stride=side)
        self.cells_norm = LayerNorm(widths[0])
        last = stem_depth - 1
        self.stem = nn.ModuleList(
            nn.ModuleList(
                CellBlock(dim, stem_mlp_ratio, self.config["layer_scale"], merges=i == last)
                for i in range(stem_depth)
            )
            for dim in widths
        )
        xavier_(self.stem)
        nn.init.xavier_uniform_(self.cells.weight.view(widths[0], -1))

    def _embed(self, images: Tensor, kept: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """See ``ViT``."""
        x = self.cells(images).unflatten(3, (-1, CELLS)).unflatten(2, (-1, CELLS))  # [B, C, H, 4, W, 4]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
        if kept is not None:
            x = take(x.flatten(2), kept).unflatten(2, (CELLS, CELLS, -1))
        x = self.cells_norm(x)
        for block, scales in zip(self.stem_blocks(), self.stem_scales(x, keys), strict=True):
            x = block(x, scales)
        return x[:, :, 0, 0]


class CellBlock(nn.Module):
    """A residual MLP on each cell [..., D]; the last of a stage then merges them."""

    def __init__(self, dim: int, mlp_ratio: float, layer_scale: float | None, merges: bool):
        super().__init__()
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)
        self.merge = Merge(dim, NORM_EPS) if merges else nn.Identity()

    def forward(self, x: Tensor, scales: Tensor | None) -> Tensor:
        return self.merge(x + scaled(scales, 1, self.ls2(self.mlp(self.norm2(x)))))
