"""CMAE: contrastive masked autoencoders are stronger vision learners."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from method_zoo.parts.contrast import batch_contrast
from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.ema import MovingAverage, cosine
from method_zoo.parts.heads import mlp_head
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Count = Annotated[int, Field(ge=1)]
Momentum = Annotated[float, Field(ge=0, le=1)]


class CMAE(Method):
    """Contrastive masked autoencoder (Huang et al., 2023, arXiv:2207.13532).

    A masked autoencoder with a second, shallow decoder for features. Their mean, projected and mapped by a
    predictor, is to be told from the batch's by a moving average of the encoder and the projector, which
    looks at the whole of a slightly shifted and recoloured crop.
    """

    card = Card(
        key="cmae",
        name="CMAE",
        paper="Contrastive Masked Autoencoders are Stronger Vision Learners",
        authors="Huang, Jin, Lu, Hou, Cheng, Fu, Shen, Feng",
        year=2023,
        arxiv="2207.13532",
        code="https://github.com/ZhichengHuang/CMAE",
        scheme="both",
        masking="random, cells of 32 pixels",
        target="low level: normalised pixels; high level: features of a moving average",
        architecture="ViT encoder on visible patches, two transformer decoders, MLP heads, moving average",
        objective="reconstruction (L2) and contrast over the batch (InfoNCE)",
        classes=Classes(
            masking="random",
            target="pixels + trained teacher",
            architecture="plain transformer",
            objective="reconstruction + contrastive",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            warmup_start_lr=1e-4 * 2.4e-3,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "ZhichengHuang/CMAE configs/pre-training/cmae/cmae_vit-base-p16_32xb128-coslr-1600e_in1k.py, "
                "ViT-B/16 on ImageNet-1K, 1600 epochs"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos_y_first", "init": "mae"},
        parity="verified",
        notes=(
            "The code hides cells of 2 x 2 patches at 65 percent; the paper single patches at 75 percent "
            "(mask_ratio=0.75, mask_unit=1). The code takes the first 224 pixels of a 256-pixel crop and for "
            "the average's view moves them by 0 to 31 pixels right and down; here the crop moves by up to as "
            "much in either direction, inside the image. The average's batch norms use the statistics of "
            "their batch and its encoder's final norm is left out, as in the code, whose contrast has MoCo "
            "v3's factor of 2 x temperature. The feature decoder has a quarter of the pixel decoder's "
            "depth, projector and predictor 2 widths hidden and a third of a width out, as published for "
            "ViT-B. The code's flag for normalised pixels does nothing: they always are."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.65,
        mask_unit: Count = 2,
        shift: Annotated[float, Field(ge=0, lt=1)] = 31 / 224,
        contrast_weight: Annotated[float, Field(ge=0)] = 1.0,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        momentum_start: Momentum = 0.996,
        momentum_end: Momentum = 0.996,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        feature_depth: Count | None = None,
        head_hidden: Count | None = None,
        head_dim: Count | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio, unit=mask_unit)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        self.views = (_view(backbone.config["image_size"], shift),)
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.momentum_start, self.momentum_end = momentum_start, momentum_end

        width, mlp_ratio = backbone.embed_dim, backbone.config["mlp_ratio"]
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.pixel_tokens = MaskTokens(width, dim, backbone.grid, first="y")
        self.pixel_decoder = TransformerDecoder(dim, depth, heads, 3 * backbone.patch_size**2, mlp_ratio)
        self.feature_tokens = MaskTokens(width, dim, backbone.grid, first="y")
        feature_depth = feature_depth or max(1, round(depth / 4))
        self.feature_decoder = TransformerDecoder(dim, feature_depth, heads, width, mlp_ratio)

        hidden, out = head_hidden or 2 * width, head_dim or max(1, width // 3)
        self.projector = mlp_head((width, hidden, out), last_bias=False, eps=1e-6)
        self.predictor = mlp_head((out, hidden, out), last_bias=False, eps=1e-6)
        self.teacher = MovingAverage(encoder=self.encoder, projector=self.projector)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, step.views[1].images, mask, step.keys)

    def losses(self, images: Tensor, shifted: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden. shifted: what the teacher sees."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        pixels = self.pixel_decoder(self.pixel_tokens(encoded, hidden), last=hidden.shape[1])
        features = self.feature_decoder(self.feature_tokens(encoded, hidden), last=mask.shape[1])
        query = self.predictor(self.projector(features.mean(1)))
        contrast = batch_contrast(query, self.targets(shifted), self.temperature)
        error = pixel_error(pixels, images, hidden, self.encoder.patch_size, norm=True)
        return Losses(
            reconstruction=error.mean(),
            contrast=self.contrast_weight * 2 * self.temperature * contrast,
        )

    @torch.no_grad()
    def targets(self, shifted: Tensor) -> Tensor:
        """The teacher's projection of the mean of its last block's patches, [B, D]."""
        (tapped,) = self.teacher["encoder"].encode(shifted, layers=(-1,)).layers
        return self.teacher["projector"](tapped[1].mean(1)).to(shifted.dtype)

    def after_step(self, step: Step) -> None:
        momentum = cosine(self.momentum_start, self.momentum_end, step.progress)
        self.teacher.update(momentum, encoder=self.encoder, projector=self.projector)


def _view(image_size: int, shift: float) -> View:
    colours = Augmentation(color_jitter=0.4, hue=0.1, jitter_probability=0.8, grayscale=0.2, blur=0.5)
    return View(augmentation=colours, image_size=image_size, crop="shifted", shift=shift)
