"""MFM: masked frequency modeling for self-supervised visual pre-training."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.collective import summed
from method_zoo.parts.images import Denormalise
from method_zoo.parts.patches import unpatchify
from method_zoo.parts.spectrum import distance, filtered, radii, spectrum
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe
from mimbench.watching import note_pixels

NO_SLOPE = 1e-12  # added to squared distances of frequencies, as in the code


class MFM(Method):
    """Masked frequency modeling (Xie et al., 2023, arXiv:2206.07706).

    The encoder sees every patch of an image that lacks its low or its high frequencies; a linear layer on
    its output predicts the image, and the loss is the distance of its spectrum at the missing frequencies.
    """

    card = Card(
        key="mfm",
        name="MFM",
        paper="Masked Frequency Modeling for Self-Supervised Visual Pre-Training",
        authors="Xie, Li, Zhan, Liu, Ong, Loy",
        year=2023,
        arxiv="2206.07706",
        code="https://github.com/Jiahao000/MFM",
        scheme="reconstruction",
        masking="guided by signals: frequency, low or high pass",
        target="low level: spectrum",
        architecture="ViT encoder on all of the filtered image, linear head",
        objective="reconstruction (distance of frequencies)",
        classes=Classes(
            masking="signal-guided",
            target="spectrum",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=3e-4,
            lr_rule="per_512",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=20 / 300,
            warmup_start_lr=4 * 2.5e-7,
            min_lr=4 * 2.5e-6,
            clip_grad=3.0,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "Jiahao000/MFM mfm_pretrain__vit_base__img224__300ep.yaml and config.py, 16 GPUs x 128 as in "
                "docs/PRETRAIN.md"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "learned", "qkv_bias": "query_value", "init": "beit"},
        parity="verified",
        notes=(
            "The radius is a share of the image side: the published 16 of 224. As in the code the filtered "
            "image is cut off to [0, 1], which changes a high-passed one a lot, and the loss divides by the "
            "missing frequencies of the whole batch: a low-passed image, which lacks most, weighs more than "
            "a high-passed one. loss_on=all takes every frequency, as the code's default and some of the "
            "paper's ablations do. Filters of a band, and the code's super-resolution, deblurring and "
            "denoising tasks, are left out."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        radius: Annotated[float, Field(gt=0, lt=0.5)] = 16 / 224,
        low_pass: Annotated[float, Field(ge=0, le=1)] = 0.5,
        loss_on: Literal["masked", "all"] = "masked",
    ):
        super().__init__()
        self.encoder = backbone
        self.low_pass, self.loss_on = low_pass, loss_on
        size = backbone.config["image_size"]
        # Rounded, because the circle itself belongs outside and 16 / 224 · 224 may lie on either side of 16.
        low = radii((size, size)) < round(radius * size, 6)
        if low.sum() < 2:
            raise UserError(
                f"low frequencies of a radius of {radius:g} are but the mean of a {size}-pixel image; "
                f"choose a radius above {1 / size:g}"
            )
        self.register_buffer("low", low, persistent=False)
        self.head = nn.Linear(backbone.embed_dim, 3 * backbone.patch_size**2)
        truncated_normal_(self.head)
        self.denormalise = Denormalise(self.card)

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.passed(step.keys), step.keys)

    def passed(self, keys: Tensor) -> Tensor:
        """Frequencies that the encoder is shown, bool [B, H, W] in the order of ``torch.fft``."""
        is_low = rng.uniform(keys, 1, "frequencies") < self.low_pass
        return self.low == is_low.unsqueeze(-1)

    def corrupted(self, images: Tensor, passed: Tensor) -> Tensor:
        """Normalised images without the frequencies that are not passed, in [0, 1]."""
        return filtered(self.denormalise(images), passed).clamp(0, 1)

    def losses(self, images: Tensor, passed: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under given filters, bool [B, H, W], True = shown."""
        seen = self.denormalise.inverse(self.corrupted(images, passed))
        encoded = self.encoder.encode(seen, keys=keys)
        predicted = unpatchify(self.head(encoded.patches), self.encoder.grid, order="channel")
        note_pixels(lambda: predicted)
        error = distance(spectrum(predicted.to(images.dtype)), spectrum(images), NO_SLOPE).mean(1)
        missing = torch.ones_like(passed) if self.loss_on == "all" else ~passed
        return Losses(frequencies=summed((error * missing).sum()) / summed(missing.sum()))
