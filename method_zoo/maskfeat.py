"""MaskFeat: masked feature prediction for self-supervised visual pre-training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.hog import HOG, cell_side
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.patches import patchify
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MaskFeat(Method):
    """Masked feature prediction (Wei et al., 2022, arXiv:2112.09133).

    Blocks of patches become a mask token in the encoder's input; a linear layer on its output regresses
    the histograms of oriented gradients of the hidden places, one for each cell and colour.
    """

    card = Card(
        key="maskfeat",
        name="MaskFeat",
        paper="Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        authors="Wei, Fan, Xie, Wu, Yuille, Feichtenhofer",
        year=2022,
        arxiv="2112.09133",
        code="https://github.com/facebookresearch/SlowFast",
        scheme="reconstruction",
        masking="block",
        target="low level: HOG",
        architecture="ViT encoder with mask tokens, linear head",
        objective="reconstruction (L2)",
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
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=30 / 300,
            warmup_start_lr=8e-6,
            min_lr=8e-6,
            clip_grad=0.02,
            augmentation=Augmentation(crop_scale=(0.5, 1.0), interpolation="bicubic", flip=True),
            source=(
                "facebookresearch/SlowFast configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml, 300 epochs; batch "
                "from the paper, rates scaled to it as the code does"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "learned", "mask_token": True, "init": "beit"},
        parity="verified",
        notes=(
            "The image version of a method made for video first. The code predicts from a norm of its own "
            "and has no final norm in the encoder; here the encoder's final norm is that norm, which is the "
            "same function and leaves the encoder with a trained one. A cell is half a patch wide, the "
            "published 8 pixels. gaussian=true weights the gradients by a Gaussian over each patch, as the "
            "code can but does not. Blocks cover at least a fifth of what is to be hidden; as in the code "
            "rows may hide a few patches fewer than asked. Initial weights follow BEiT's code, which scales "
            "output projections down by depth, where this code does not."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4,
        bins: Annotated[int, Field(ge=2)] = 9,
        cells_per_patch: Annotated[int, Field(ge=1)] = 2,
        gaussian: bool = False,
    ):
        super().__init__()
        self.encoder = backbone
        n_hidden = BlockMask(ratio=mask_ratio, min_block=1).n_hidden(backbone.grid)
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, n_hidden // 5))
        self.cells_per_patch = cells_per_patch
        cell = cell_side(backbone.patch_size, cells_per_patch)
        self.hog = HOG(cell, bins, window=backbone.patch_size if gaussian else 0)
        self.head = nn.Linear(backbone.embed_dim, 3 * bins * cells_per_patch**2)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def targets(self, images: Tensor) -> Tensor:
        """Histograms of each patch, [B, N, 3·bins·cells]: colour, bin, then cells in raster order."""
        return patchify(self.hog(images).flatten(1, 2), self.cells_per_patch, order="channel")

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden; rows may hide different numbers."""
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        predicted = self.head(encoded.patches[mask])
        target = self.targets(images)[mask]
        return Losses(reconstruction=F.mse_loss(predicted.to(target.dtype), target))
