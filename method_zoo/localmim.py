"""LocalMIM: masked image modeling with local multi-scale reconstruction."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.hog import HOG, cell_side
from method_zoo.parts.losses import squared_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from mimbench.encoder import Backbone, Encoded
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

SCALES = (4.0, 2.0, 1.0, 0.5)  # cells along a patch, at earlier to later blocks


class LocalMIM(Method):
    """Local multi-scale reconstruction (Wang et al., 2023, arXiv:2303.05251).

    Four blocks of the encoder, early to late, each have a tiny decoder that predicts histograms of oriented
    gradients: the early ones of fine cells, the late ones of coarse cells. So the lower blocks are taught
    directly.
    """

    card = Card(
        key="localmim",
        name="LocalMIM",
        paper="Masked Image Modeling with Local Multi-Scale Reconstruction",
        authors="Wang, Tang, Wang, Guo, Deng, Han",
        year=2023,
        arxiv="2303.05251",
        code="https://github.com/Haoqing-Wang/LocalMIM",
        scheme="reconstruction",
        masking="random",
        target="low level: HOG at four scales",
        architecture="ViT encoder on visible patches, a one-block decoder at each of four blocks",
        objective="reconstruction (L2 at four scales)",
        classes=Classes(
            masking="random",
            target="hog",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=2e-4,
            lr_rule="per_256",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="Haoqing-Wang/LocalMIM ViT/README.md, ViT-B/16 on ImageNet-1K, 1600 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The ViT code's HOG version; the paper also tries normalised pixels. Decoders stand after the "
            "second and fourth block and after the third last and last one; below seven blocks they are "
            "spread evenly. The last block's norm is the encoder's final norm. Decoders have one block and "
            "a third of the encoder's width, the published 256 beside ViT-B. The published ViT-L takes 18 "
            "bins and adds a random constant to all gradients (--hog_bias), which is left out."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        bins: Annotated[int, Field(ge=2)] = 9,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        if any(side % 2 for side in backbone.grid):
            raise UserError(
                f"LocalMIM's coarsest cells cover 2x2 patches and do not tile the {backbone.grid[0]}x"
                f"{backbone.grid[1]} patch grid; choose an image size of an even number of patches"
            )
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.layers = tap_layers(backbone.depth)
        self.hog = HOG(cell_side(backbone.patch_size, int(SCALES[0])), bins, normalise=False)
        dim, depth, heads = decoder_size(
            backbone, decoder_dim, decoder_depth, decoder_heads, published=(256, 1)
        )
        # Of the blocks before the last, which has the encoder's.
        self.norms = nn.ModuleList(LayerNorm(backbone.embed_dim) for _ in SCALES[:-1])
        self.decoders = nn.ModuleList(
            ScaleDecoder(backbone, scale, dim, depth, heads, 3 * bins) for scale in SCALES
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, layers=self.layers, keys=keys)
        norms = [*self.norms, self.encoder.final_norm]
        losses = Losses()
        for scale, tap, norm, decoder, target in zip(
            SCALES, encoded.layers, norms, self.decoders, self.targets(images), strict=True
        ):
            cls, patches = (None if tokens is None else norm(tokens) for tokens in tap)
            predicted = decoder(encoded._replace(cls=cls, patches=patches), hidden)
            error = squared_error(predicted, target)
            share = self.hidden_share(mask, scale).to(error.dtype)
            losses[f"scale_{scale:g}"] = (error * share).sum() / share.sum()
        return losses

    def targets(self, images: Tensor) -> list[Tensor]:
        """Histograms of each scale's cells in raster order, [B, cells, 3·bins]: colour, then bin."""
        finest = self.hog(images)
        targets = []
        for scale in SCALES:
            # Unnormalised histograms of coarse cells are means of those of the fine ones inside.
            cells = F.avg_pool2d(finest.flatten(1, 2), int(SCALES[0] / scale))
            histograms = F.normalize(cells.unflatten(1, (3, -1)), dim=2)
            targets.append(histograms.flatten(1, 2).flatten(2).transpose(1, 2))
        return targets

    def hidden_share(self, mask: Tensor, scale: float) -> Tensor:
        """How much of each cell is hidden, 0 to 1, [B, cells]."""
        cells = mask.view(-1, 1, *self.encoder.grid).float()
        # Averages over finer cells change nothing: a patch is hidden as a whole.
        return F.interpolate(cells, scale_factor=scale, mode="area").flatten(1)


def tap_layers(depth: int) -> list[int]:
    """Blocks with a decoder, counted from the end: 2nd, 4th, third last and last, or spread evenly."""
    if depth >= 7:
        return [1 - depth, 3 - depth, -3, -1]
    return [math.ceil(depth * k / len(SCALES)) - 1 - depth for k in range(1, len(SCALES) + 1)]


class ScaleDecoder(nn.Module):
    """Visible tokens of a block -> predictions for each cell of ``scale`` cells along a patch.

    A transformer on the full sequence, then transposed convolutions that split patches into cells (or the
    mean of 2x2 patches) and a linear layer.
    """

    def __init__(self, backbone: Backbone, scale: float, dim: int, depth: int, heads: int, out_features: int):
        super().__init__()
        self.grid = backbone.grid
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        mlp_ratio = backbone.config["mlp_ratio"]
        self.decoder = TransformerDecoder(dim, depth, heads, None, mlp_ratio)
        width, layers = dim, []
        if scale == 0.5:
            layers = [nn.AvgPool2d(2)]
        for halvings in range(1, int(math.log2(max(scale, 1))) + 1):
            if halvings > 1:
                layers += [ChannelNorm(width), nn.GELU()]
            layers += [nn.ConvTranspose2d(width, dim // 2**halvings, 2, stride=2)]
            width = dim // 2**halvings
        self.head = nn.Sequential(*layers, nn.Conv2d(width, out_features, 1))

    def forward(self, encoded: Encoded, hidden: Tensor) -> Tensor:
        """[B, cells, out_features], cells in raster order. hidden: raster indices, [B, m]."""
        n_patches = self.grid[0] * self.grid[1]
        tokens = self.decoder(self.mask_tokens(encoded, hidden), last=n_patches)
        raster = torch.cat([encoded.kept, hidden], dim=1).argsort(1)
        patches = take(tokens, raster).transpose(1, 2).unflatten(2, self.grid)
        return self.head(patches).flatten(2).transpose(1, 2)


class ChannelNorm(LayerNorm):
    """Layer norm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
