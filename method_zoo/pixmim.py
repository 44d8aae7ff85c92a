"""PixMIM: rethinking pixel reconstruction in masked image modeling."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.images import Denormalise
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class PixMIM(Method):
    """PixMIM (Liu et al., 2023, arXiv:2303.02416).

    A masked autoencoder whose target lost its high frequencies, so that no capacity goes into texture,
    and whose crops keep nearly the whole image, so that a mask of 75 percent leaves some of the object.
    """

    card = Card(
        key="pixmim",
        name="PixMIM",
        paper="PixMIM: Rethinking Pixel Reconstruction in Masked Image Modeling",
        authors="Liu, Zhang, Chen, Chen, Lin",
        year=2023,
        arxiv="2303.02416",
        code="https://github.com/open-mmlab/mmselfsup/tree/main/configs/selfsup/pixmim",
        scheme="reconstruction",
        masking="random",
        target="low level: normalised pixels of the low-passed image",
        architecture="ViT encoder on visible patches, transformer decoder",
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
            source="open-mmlab/mmselfsup configs/selfsup/pixmim, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="not compared",
        notes=(
            "Official code exists but no record of it was at hand: the filter is tested against a naive one. "
            "radius is the published 40 of 224, in waves per image side as a share of its pixels. As in the "
            "code the filter's circle is centred between pixels, half a frequency off on even sides, "
            "and the filtered image, complex for that reason, is taken by its absolute value. The code "
            "shifts its square crops by up to 4 pixels beyond the border; here they stay inside. The decoder "
            "keeps its published proportion to ViT-B, as in MAE."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        radius: Annotated[float, Field(gt=0, le=0.75)] = 40 / 224,
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.radius, self.norm_pix = radius, norm_pix
        self.plain = Denormalise(self.card)
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
        error = pixel_error(predicted, self.smoothed(images), hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())

    def smoothed(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] without their high frequencies, filtered as they were in [0, 1]."""
        low = low_passed(self.plain(images), self.radius * images.shape[-1])
        return (low - self.plain.mean) / self.plain.std


def low_passed(images: Tensor, radius: float) -> Tensor:
    """Magnitude of images [B, C, H, W] of which frequencies within a circle are left.

    radius: in waves per image side. The circle lies around the middle of the centred spectrum's array,
    which is 1/2 off the frequency 0 along sides of even length.
    """
    y, x = (
        torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=images.device) + (0.5 if n % 2 == 0 else 0.0)
        for n in images.shape[-2:]
    )
    passed = y[:, None].square() + x.square() <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(images) * passed).abs()
