"""MFF: improving pixel-based MIM by reducing wasted modeling capability."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone, Encoded
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MFF(Method):
    """Multi-level feature fusion (Liu et al., 2023, arXiv:2308.00261).

    Pixels ask for low-level features, which a plain masked autoencoder has to carry through all its
    blocks. Here the decoder gets a weighted sum of blocks at several depths, each through a linear
    projection, so that the last block is free for what the others do not have.
    """

    card = Card(
        key="mff",
        name="MFF",
        paper="Improving Pixel-based MIM by Reducing Wasted Modeling Capability",
        authors="Liu, Zhang, Chen, Yu, Chen, Lin",
        year=2023,
        arxiv="2308.00261",
        code="https://github.com/open-mmlab/mmpretrain/tree/main/configs/mff",
        scheme="reconstruction",
        masking="random",
        target="low level: normalised pixels",
        architecture="ViT encoder on visible patches, fusion of its blocks, transformer decoder",
        objective="reconstruction (L2)",
        classes=Classes(
            masking="random",
            target="pixels",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 800,
            augmentation=Augmentation(crop="square", interpolation="bilinear", flip=True),
            source="open-mmlab/mmpretrain configs/mff, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="not compared",
        notes=(
            "Official code exists but no record of it was at hand: the fusion is tested against a naive one. "
            "Half of the blocks are fused, evenly spread from the first to the last: 1, 3, 5, 7, 9 and 12 of "
            "12, as published for 800 epochs (for 300 every second one: 2, 4, ..., 12). The last block "
            "is not projected and the encoder's final norm comes after the sum, as in the code. Evaluations "
            "see the last block alone, as the code's do. The code shifts its square crops by up to 4 "
            "pixels beyond the border; here they stay inside. The decoder keeps its published proportion to "
            "ViT-B, as in MAE."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        levels: Annotated[int, Field(ge=1)] | None = None,
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.norm_pix = norm_pix
        self.layers = fused_layers(backbone.depth, levels)
        self.fusion = Fusion(backbone.embed_dim, len(self.layers))
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", layers=self.layers, keys=keys)
        predicted = self.decoder(self.mask_tokens(self.fused(encoded), hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())

    def fused(self, encoded: Encoded) -> Encoded:
        """``encoded`` with the fused tokens in place of the last block's."""
        cls = None
        if encoded.cls is not None:
            cls = self.encoder.final_norm(self.fusion([tap for tap, _ in encoded.layers if tap is not None]))
        patches = self.encoder.final_norm(self.fusion([patches for _, patches in encoded.layers]))
        return encoded._replace(cls=cls, patches=patches)


def fused_layers(depth: int, levels: int | None = None) -> tuple[int, ...]:
    """Blocks to fuse, counted from the end, first to last: ``levels`` of them, evenly spread.

    None: half of the blocks, but two at least. Raises UserError where there are not so many.
    """
    levels = max(2, depth // 2) if levels is None else levels
    if levels > depth:
        raise UserError(f"levels={levels} asks for more blocks than the encoder's {depth}")
    if levels == 1:
        return (-1,)
    return tuple(i * (depth - 1) // (levels - 1) - depth for i in range(levels))


class Fusion(nn.Module):
    """Weighted sum of tokens of several depths, all but the last projected.

    The weights are a softmax of learned scores, which start equal.
    """

    def __init__(self, dim: int, levels: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in range(levels - 1))
        # One level has a weight of 1, whatever its score.
        self.scores = nn.Parameter(torch.ones(levels)) if levels > 1 else None
        xavier_(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """[..., dim] of as many tensors [..., dim] as there are levels, first to last."""
        *shallow, last = levels
        if self.scores is None:
            return last
        weights = self.scores.softmax(0)
        fused = weights[-1] * last
        for weight, project, tokens in zip(weights[:-1], self.projections, shallow, strict=True):
            fused = fused + weight * project(tokens)
        return fused
