"""RC-MAE: exploring the role of mean teachers in self-supervised masked auto-encoders."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage, cosine
from method_zoo.parts.losses import pixel_error, squared_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Momentum = Annotated[float, Field(ge=0, le=1)]


class RCMAE(HandsOnAverage, Method):
    """Reconstruction-consistent masked autoencoder (Lee et al., 2023, arXiv:2210.02077).

    A masked autoencoder whose moving average, encoder and decoder, reconstructs the same image under the
    same mask; its reconstruction of the hidden patches is a second target beside their pixels.
    """

    card = Card(
        key="rcmae",
        name="RC-MAE",
        paper="Exploring The Role of Mean Teachers in Self-supervised Masked Auto-Encoders",
        authors="Lee, Willette, Kim, Lee, Hwang",
        year=2023,
        arxiv="2210.02077",
        code="https://github.com/youngwanLEE/rc-mae",
        scheme="both",
        masking="random",
        target="low level: normalised pixels, reconstruction by a moving average",
        architecture="ViT encoder on visible patches, transformer decoder, moving average of both",
        objective="reconstruction (L2) and consistency of reconstructions (L2)",
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
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="youngwanLEE/rc-mae scripts/pretrain_rc_mae_vit_base_1600ep.sh, ViT-B/16 on ImageNet-1K",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="not compared",
        notes=(
            "There is official code but no record of what it computes; both terms are written after it. "
            "The consistency is over the hidden patches only, as in the code. The code's momentum schedule "
            "is built for all steps of the run but read at the number of the step within its epoch, so "
            "that the momentum stays close to 0.996 (momentum_end=0.996); here it grows to 1 along a "
            "cosine over the run, as the code's comments and the paper say. The published fine-tuning "
            "starts from the moving average, which is handed on here too. The decoder has the size MAE's "
            "has, in the published proportion to ViT-B."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm_pix: bool = True,
        consistency_weight: Annotated[float, Field(ge=0)] = 1.0,
        momentum_start: Momentum = 0.996,
        momentum_end: Momentum = 1.0,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = RandomMask(mask_ratio)
        self.norm_pix, self.consistency_weight = norm_pix, consistency_weight
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        self.teacher = MovingAverage(**self._averaged())

    def _averaged(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "mask_tokens": self.mask_tokens, "decoder": self.decoder}

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, self.teachers_reconstruction(images, mask), step.keys)

    @torch.no_grad()
    def teachers_reconstruction(self, images: Tensor, mask: Tensor) -> Tensor:
        """What the moving average makes of the hidden patches under the same mask, [B, n, 3 * p * p]."""
        hidden = where(mask)
        encoded = self.teacher["encoder"].encode(images, mask, fill="drop")
        tokens = self.teacher["mask_tokens"](encoded, hidden)
        return self.teacher["decoder"](tokens, last=hidden.shape[1]).to(images.dtype)

    def losses(self, images: Tensor, mask: Tensor, teachers: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and beside a given reconstruction."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(
            reconstruction=error.mean(),
            consistency=self.consistency_weight * squared_error(predicted, teachers).mean(),
        )

    def after_step(self, step: Step) -> None:
        momentum = cosine(self.momentum_start, self.momentum_end, step.progress)
        self.teacher.update(momentum, **self._averaged())
