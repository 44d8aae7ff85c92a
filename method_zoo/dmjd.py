"""DMJD: disjoint masking with joint distillation for efficient masked image modeling."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.backbones.initial import xavier_
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.disjoint_masks import DisjointMask
from method_zoo.parts.hog import HOG, cell_side
from method_zoo.parts.images import Denormalise
from method_zoo.parts.patches import patchify, take, where
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Distance = Literal["l2", "smooth_l1"]
BINS = 9
CELLS = 2  # along a patch


class DMJD(Method):
    """Disjoint masking with joint distillation (Ma et al., 2022, arXiv:2301.00230).

    An image is encoded under two masks that hide different patches, so that nearly every patch is predicted
    in each step. A decoder predicts whitened histograms of gradients at the hidden places, an MLP those of
    the visible patches.
    """

    card = Card(
        key="dmjd",
        name="DMJD",
        paper="Disjoint Masking with Joint Distillation for Efficient Masked Image Modeling",
        authors="Ma, Liu, Qin, Yang, Dong, Zhang, Zhang",
        year=2022,
        arxiv="2301.00230",
        code="https://github.com/mx-mark/DMJD",
        scheme="reconstruction",
        masking="random, cells of 2x2 patches, two disjoint masks of an image",
        target="low level: HOG",
        architecture="ViT encoder on visible patches, transformer decoder, MLP on visible tokens",
        objective="reconstruction (L2 of hidden, smooth L1 of visible patches)",
        classes=Classes(
            masking="random",
            target="hog",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=6e-4 / 0.6,
            lr_rule="per_256",
            batch_size=512,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=20 / 400,
            augmentation=Augmentation(crop_scale=(0.5, 1.0), interpolation="bicubic", flip=True),
            source=(
                "mx-mark/DMJD PRETRAIN.md and main_pretrain.py, ConViT-B on ImageNet-1K, 400 epochs; the "
                "rate is divided by the mask ratio, as there"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "On a plain ViT. The published backbone is ConViT, two convolutional stages before a ViT, which "
            "the zoo has for whole images only (convmae_base_patch16); with what pre-training adds to it in "
            "the ViT's place the method equals the official records. The "
            "code compares the visible tokens, which lie in random order, with the targets of the visible "
            "patches in raster order, so that most are taught another patch's histograms; here each is "
            "compared with its own. It draws the order of the second mask once for a batch, here once for an "
            "image. The rate is the published one for a mask_ratio of 0.6 and does not follow that setting. "
            "Histograms of a cell and colour are whitened each by itself, of images in 0 to 255 as in the "
            "code. Other targets than HOG are left out."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6,
        mask_unit: Annotated[int, Field(ge=1)] = 2,
        covered: Annotated[float, Field(gt=0, le=1)] = 1.0,
        hidden_loss: Distance = "l2",
        visible_loss: Distance = "smooth_l1",
        visible_weight: Annotated[float, Field(gt=0)] = 1.0,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = DisjointMask(mask_ratio, mask_unit, covered)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        self.hidden_loss, self.visible_loss = hidden_loss, visible_loss
        self.visible_weight = visible_weight
        self.hog = HOG(cell_side(backbone.patch_size, CELLS), BINS, sobel=False, normalise=False)
        self.denormalise = Denormalise(self.card)
        n_targets = 3 * BINS * CELLS**2
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, n_targets, decoder_dim, decoder_depth, decoder_heads
        )
        dim = self.decoder.norm.normalized_shape[0]
        self.visible_head = nn.Sequential(
            nn.Linear(backbone.embed_dim, dim),
            LayerNorm(dim),
            nn.GELU(),
            nn.Linear(dim, dim),
            LayerNorm(dim),
            nn.GELU(),
            nn.Linear(dim, dim),
            LayerNorm(dim, elementwise_affine=False),
            nn.Linear(dim, n_targets),
        )
        xavier_(self.visible_head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        masks = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, masks, self.targets(images).repeat(2, 1, 1), step.keys)

    def targets(self, images: Tensor) -> Tensor:
        """Whitened histograms of each patch, [B, N, cells·bins·3]: cells in raster order, bin, colour."""
        histograms = self.hog(255 * self.denormalise(images))
        whitened = F.layer_norm(histograms.movedim(2, -1), (BINS,))  # [B, C, H, W, bins]
        return patchify(whitened.permute(0, 4, 1, 2, 3).flatten(1, 2), CELLS)

    def losses(
        self, images: Tensor, masks: tuple[Tensor, Tensor], targets: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under two given masks, bool [B, N], True = hidden.

        targets: [2·B, N, D], those under the first mask and then those under the second.
        """
        mask = torch.cat(masks)
        if keys is not None:
            keys = torch.cat([keys, rng.branch(keys, "second mask")])
        hidden, visible = where(mask), where(~mask)
        encoded = self.encoder.encode(images.repeat(2, 1, 1, 1), mask, fill="drop", keys=keys)
        reconstructed = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        distilled = self.visible_head(encoded.patches)
        return Losses(
            hidden=distance(reconstructed, take(targets, hidden), self.hidden_loss),
            visible=self.visible_weight * distance(distilled, take(targets, visible), self.visible_loss),
        )


def distance(predicted: Tensor, target: Tensor, kind: Distance) -> Tensor:
    """Mean squared error or smooth L1 (quadratic below 2, as in the code), a scalar."""
    predicted = predicted.to(target.dtype)
    if kind == "l2":
        return F.mse_loss(predicted, target)
    return F.smooth_l1_loss(predicted, target, beta=2.0)
