"""AMT: good helper is around you, attention-driven masked image modeling."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from method_zoo.parts.attention_masks import weighted_order
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.ema import MovingAverage
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Share = Annotated[float, Field(gt=0, lt=1)]


class AMT(Method):
    """Attention-driven masking and throwing (Liu, Gui & Luo, 2023, arXiv:2211.15362).

    A masked autoencoder that hides what the class token of its own encoder looks at: patches are drawn in
    proportion to that attention, the first drawn are to be predicted, the next are thrown away, seen by
    neither encoder nor decoder, and the last, which are mostly background, are visible.
    """

    card = Card(
        key="amt",
        name="AMT",
        paper="Good Helper Is around You: Attention-Driven Masked Image Modeling",
        authors="Liu, Gui, Luo",
        year=2023,
        arxiv="2211.15362",
        code="https://github.com/guijiejie/AMT",
        scheme="reconstruction",
        masking="guided by a network: own attention, with patches thrown away",
        target="low level: pixels",
        architecture="ViT encoder on visible patches, transformer decoder",
        objective="reconstruction (L2)",
        classes=Classes(
            masking="network-guided",
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
            warmup=40 / 400,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="guijiejie/AMT README.md and mae-AMT/main_pretrain.py, ViT-B/16, ImageNet-1K, 400 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="not compared",
        notes=(
            "There is official code but no record of what it computes; the loss and the draw are written "
            "after it. The code keeps a map of attention for each image of the dataset, computed on the "
            "whole image every 40 of 400 epochs and cropped with it. Here there is no memory: a frozen "
            "copy of the encoder, taken at the same shares of the run (start, refresh), looks at the "
            "training crop itself, one more pass without gradients each step. Before the first copy three "
            "in four patches are hidden at random, as in the code. The shares of masked and thrown patches "
            "are the code's defaults of the model and the paper's; its commands leave throwing off "
            "(mask_ratio 0.75, throw_ratio 0). Pixels are not normalised, as in its commands (norm_pix). "
            "The MAE version; the SimMIM one is not part of this zoo."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Share = 0.45,
        throw_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.4,
        random_ratio: Share = 0.75,
        start: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        refresh: Annotated[float, Field(gt=0, le=1)] = 0.1,
        norm_pix: bool = False,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        if not backbone.config.get("cls_token", False):
            raise UserError("AMT hides what the class token looks at; build the backbone with a class token")
        self.encoder = backbone
        n = backbone.grid[0] * backbone.grid[1]
        self.n_masked, self.n_hidden = int(n * mask_ratio), int(n * (mask_ratio + throw_ratio))
        if not 0 < self.n_masked <= self.n_hidden < n:
            raise UserError(
                f"masking {mask_ratio:g} and throwing {throw_ratio:g} of {n} patches leaves none to predict "
                "or none to see; choose ratios whose sum is below 1"
            )
        self.masking = RandomMask(random_ratio)
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.start, self.refresh, self.norm_pix = start, refresh, norm_pix
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        self.snapshot = MovingAverage(encoder=self.encoder)
        self.register_buffer("snapshots", torch.tensor(0))  # how many were taken

    def forward(self, images: Tensor, step: Step) -> Losses:
        if self.snapshots == 0:
            masked = self.masking(step.keys, self.encoder.grid)
            return self.losses(images, masked, torch.zeros_like(masked), step.keys)
        masked, thrown = self.masks(self.attention(images), step.keys)
        return self.losses(images, masked, thrown, step.keys)

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """How much the class token of the snapshot looks at each patch, [B, N] in [0, 1].

        Each head's attention in the last block is stretched to the range from 0 to 1, then they are averaged.
        """
        looks = self.snapshot["encoder"].encode(images, attention=True).attention[:, :, 0, 1:].float()
        low, high = looks.amin(-1, keepdim=True), looks.amax(-1, keepdim=True)
        return ((looks - low) / (high - low).clamp_min(torch.finfo(looks.dtype).tiny)).mean(1)

    def masks(self, attention: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Patches to predict and patches to throw away, bool [B, N] each. attention: [B, N]."""
        order = weighted_order(keys, attention).argsort(dim=1, stable=True)
        masked, thrown = torch.zeros(2, *attention.shape, dtype=torch.bool, device=attention.device)
        masked.scatter_(1, order[:, : self.n_masked], True)
        return masked, thrown.scatter_(1, order[:, self.n_masked : self.n_hidden], True)

    def losses(self, images: Tensor, masked: Tensor, thrown: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under given masks, bool [B, N]: patches to predict and patches that nothing sees."""
        hidden = where(masked)
        encoded = self.encoder.encode(images, masked | thrown, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())

    def after_step(self, step: Step) -> None:
        due = 0 if step.progress < self.start else 1 + int((step.progress - self.start) / self.refresh)
        if due > self.snapshots:
            self.snapshot.update(0.0, encoder=self.encoder)
            self.snapshots.fill_(due)
