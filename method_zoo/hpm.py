"""HPM: hard patches mining for masked image modeling."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.ema import MovingAverage, linear
from method_zoo.parts.losses import pixel_error, ranking
from method_zoo.parts.masking import RandomMask, mask_from_scores, random_scores
from method_zoo.parts.patches import where
from method_zoo.parts.targets import normalised
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Momentum = Annotated[float, Field(ge=0, le=1)]


class HPM(Method):
    """Hard patches mining (Wang et al., 2023, arXiv:2304.05919).

    A masked autoencoder with a second decoder that predicts how large the reconstruction loss of each
    patch will be. Its moving average looks at the whole image and has the patches it finds hardest
    hidden; their share of the hidden ones grows over training, the rest is random.
    """

    card = Card(
        key="hpm",
        name="HPM",
        paper="Hard Patches Mining for Masked Image Modeling",
        authors="Wang, Song, Fan, Wang, Xie, Zhang",
        year=2023,
        arxiv="2304.05919",
        code="https://github.com/Haochen-Wang409/HPM",
        scheme="reconstruction",
        masking="guided by a network: predicted loss",
        target="low level: normalised pixels",
        architecture="ViT encoder on visible patches, two transformer decoders, moving average",
        objective="reconstruction (L2) and ranking of patch losses",
        classes=Classes(
            masking="network-guided",
            target="pixels",
            architecture="plain transformer",
            objective="reconstruction + other",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 800,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "Haochen-Wang409/HPM scripts/pretrain_base.sh, ViT-B/16 on ImageNet-1K, 800 epochs; "
                "batch from PRETRAIN.md"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "Targets are normalised pixels as in MAE; the published commands leave norm_pix_loss at its "
            "default, off (norm_pix=false). The momentum grows over the first 100 epochs whatever the length "
            "of the run; here over the first half, which is the code's at 200 epochs. The code's share of "
            "hard patches steps up once an epoch, here with every step. The average runs over what predicts "
            "the loss; the code also averages the pixel decoder, which nothing reads. Both decoders have the "
            "size MAE's has, in the published proportion to ViT-B."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        hard_share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        relative: bool = True,
        norm_pix: bool = True,
        momentum_start: Momentum = 0.999,
        momentum_end: Momentum = 0.9999,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.hard_share, self.relative, self.norm_pix = hard_share, relative, norm_pix
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        pixels = 3 * backbone.patch_size**2
        self.decoder = TransformerDecoder(dim, depth, heads, pixels)
        # As wide as the pixel decoder's output, to be averaged: so in the code.
        self.loss_predictor = TransformerDecoder(dim, depth, heads, pixels)
        self.teacher = MovingAverage(**self._averaged())

    def _averaged(self) -> dict[str, nn.Module]:
        return {
            "encoder": self.encoder,
            "mask_tokens": self.mask_tokens,
            "loss_predictor": self.loss_predictor,
        }

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.mask(self.predicted_difficulty(images), step.keys, step.progress)
        return self.losses(images, mask, step.keys)

    @torch.no_grad()
    def predicted_difficulty(self, images: Tensor) -> Tensor:
        """The reconstruction loss that the teacher expects at each patch of the whole image, [B, N]."""
        encoded = self.teacher["encoder"].encode(images)
        tokens = self.teacher["mask_tokens"](encoded)
        predicted = self.teacher["loss_predictor"](tokens, last=encoded.patches.shape[1])
        return predicted.to(images.dtype).mean(-1)

    def mask(self, difficulty: Tensor, keys: Tensor, progress: float) -> Tensor:
        """Hide the hardest patches and random others, bool [B, N]. difficulty: [B, N]."""
        n_hidden = self.masking.hidden_cells(self.encoder.grid)
        n_hard = int(n_hidden * self.hard_share * progress)
        hardest = mask_from_scores(difficulty, n_hard)
        # A random score is below 1, so the hardest patches come before every other one.
        return mask_from_scores(random_scores(keys, difficulty.shape[1]) + hardest, n_hidden)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        tokens = self.mask_tokens(self.encoder.encode(images, mask, fill="drop", keys=keys), hidden)
        predicted = self.decoder(tokens, last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)  # [B, hidden]
        difficulty = self.loss_predictor(tokens, last=hidden.shape[1]).to(error.dtype).mean(-1)
        return Losses(reconstruction=error.mean(), difficulty=self._learning_loss(difficulty, error.detach()))

    def _learning_loss(self, difficulty: Tensor, error: Tensor) -> Tensor:
        if self.relative:
            return ranking(difficulty, error)
        return (difficulty - normalised(error)).square().mean()

    def after_step(self, step: Step) -> None:
        momentum = linear(self.momentum_start, self.momentum_end, 2 * step.progress)
        self.teacher.update(momentum, **self._averaged())
