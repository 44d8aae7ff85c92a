"""ColorMAE: exploring data-independent masking strategies in masked autoencoders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.noise import NoiseMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class ColorMAE(Method):
    """ColorMAE (Hinojosa et al., 2024, arXiv:2407.13036).

    A masked autoencoder whose mask is cut out of filtered noise instead of white noise: what is hidden
    together has a typical size, chosen by the colour of the noise, at no cost and without looking at the
    image. Green noise, a band of middle frequencies, hides clusters of a few patches.
    """

    card = Card(
        key="colormae",
        name="ColorMAE",
        paper="ColorMAE: Exploring data-independent masking strategies in Masked AutoEncoders",
        authors="Hinojosa, Liu, Ghanem",
        year=2024,
        arxiv="2407.13036",
        code="https://github.com/carlosh93/ColorMAE",
        scheme="reconstruction",
        masking="guided by classical features: filtered noise",
        target="low level: normalised pixels",
        architecture="ViT encoder on visible patches, transformer decoder",
        objective="reconstruction (L2)",
        classes=Classes(
            masking="signal-guided",
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
            warmup=40 / 300,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="carlosh93/ColorMAE configs, mmpretrain's MAE, ViT-B/16 on ImageNet-1K, 300 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "Verified are the masks that the official generator cuts out of given noise; encoder, decoder "
            "and loss are MAE's. The code cuts windows out of 3072 given patterns, one place and flip for "
            "the whole batch, and its patterns are files whose filter widths are not in the code. Here every "
            "image has noise of its own, filtered as the paper says with Gaussians of 1 and 2 patches "
            "(narrow, wide), which are ours. As in the code the strongest noise stays visible; the noise is "
            "symmetric, so that hiding it, as the paper says, gives the same masks."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        color: Literal["green", "blue", "red", "purple"] = "green",
        narrow: Annotated[float, Field(gt=0)] = 1.0,
        wide: Annotated[float, Field(gt=0)] = 2.0,
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = NoiseMask(mask_ratio, color, narrow, wide)
        self.norm_pix = norm_pix
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())
