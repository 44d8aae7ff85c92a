"""ConViT, the hybrid backbone of ConvMAE (Gao et al., 2022, arXiv:2205.03892) that DMJD was published with.

A stand-in for the zoo's backbones in the official runs that need it, without class token: two stages of
convolutions, which see only what is visible, then a transformer on the visible patches. Parameters have
the official names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.patches import take, where
from mimbench.encoder import Encoded


class ConViT(nn.Module):
    """Three stages; patches of 16 pixels. sizes: as in the official configuration, one a stage."""

    patch_size = 16

    def __init__(self, image_size: int, embed_dim: Sequence[int], depth: Sequence[int], heads: int, mlp: int):
        super().__init__()
        self.config: dict[str, Any] = {"image_size": image_size, "cls_token": False, "mlp_ratio": mlp}
        self.embed_dim, self.depth = embed_dim[2], depth[2]
        self.grid = (image_size // self.patch_size, image_size // self.patch_size)
        self.patch_embed1 = Embedding(3, embed_dim[0], 4)
        self.patch_embed2 = Embedding(embed_dim[0], embed_dim[1], 2)
        self.patch_embed3 = Embedding(embed_dim[1], embed_dim[2], 2)
        self.patch_embed4 = nn.Linear(embed_dim[2], embed_dim[2])
        self.stage1_output_decode = nn.Conv2d(embed_dim[0], embed_dim[2], 4, stride=4)
        self.stage2_output_decode = nn.Conv2d(embed_dim[1], embed_dim[2], 2, stride=2)
        self.blocks1 = nn.ModuleList(ConvBlock(embed_dim[0], mlp) for _ in range(depth[0]))
        self.blocks2 = nn.ModuleList(ConvBlock(embed_dim[1], mlp) for _ in range(depth[1]))
        self.blocks3 = nn.ModuleList(
            Block(embed_dim[2], heads, mlp_ratio=mlp, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(depth[2])
        )
        self.norm = LayerNorm(embed_dim[2])
        self.register_buffer("positions", sincos_positions(embed_dim[2], self.grid), persistent=False)

    def encode(self, images: Tensor, mask: Tensor, fill: str = "drop", keys: Tensor | None = None) -> Encoded:
        kept = where(~mask)
        seen = (~mask).to(images.dtype).view(-1, 1, *self.grid)
        x = self.patch_embed1(images)
        for block in self.blocks1:
            x = block(x, nn.functional.interpolate(seen, scale_factor=4))
        skips = [self.stage1_output_decode(x)]
        x = self.patch_embed2(x)
        for block in self.blocks2:
            x = block(x, nn.functional.interpolate(seen, scale_factor=2))
        skips.append(self.stage2_output_decode(x))
        tokens = self.patch_embed4(flattened(self.patch_embed3(x))) + self.positions
        tokens = take(tokens, kept)
        for block in self.blocks3:
            tokens = block(tokens)
        tokens = tokens + sum(take(flattened(skip), kept) for skip in skips)
        return Encoded(None, self.norm(tokens), kept, (), None)


class Embedding(nn.Module):
    """Patches of a map: a convolution, a norm of the channels, an activation."""

    def __init__(self, in_channels: int, dim: int, size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, size, stride=size)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(channels_first(self.norm, self.proj(x)))


class ConvBlock(nn.Module):
    """A transformer block whose attention is a depth-wise convolution of what is visible."""

    def __init__(self, dim: int, mlp_ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Conv2d(dim, mlp_ratio * dim, 1), "fc2": nn.Conv2d(mlp_ratio * dim, dim, 1)}
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.conv2(self.attn(seen * self.conv1(channels_first(self.norm1, x))))
        hidden = self.act(self.mlp["fc1"](channels_first(self.norm2, x)))
        return x + self.mlp["fc2"](hidden)


def channels_first(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


def flattened(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
