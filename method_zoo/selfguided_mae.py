"""Self-guided MAE: masks out of the encoder's own patch clusters."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from method_zoo.parts.clusters import object_scores
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask, mask_from_scores, random_scores
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class SelfGuidedMAE(Method):
    """Self-guided masked autoencoder (Shin et al., 2024, arXiv:2507.19773).

    A masked autoencoder learns early to tell clusters of patches apart. Once it does, its own encoder
    splits the whole image in two, and the patches most alike to the object's side are hidden, but for a
    few that are left as a hint, so that the finer clusters inside the object have to be learned.
    """

    card = Card(
        key="selfguided_mae",
        name="Self-guided MAE",
        paper="Self-Guided Masked Autoencoder",
        authors="Shin, Lee, Lee, Lee",
        year=2024,
        arxiv="2507.19773",
        scheme="reconstruction",
        masking="guided by a network: own patch clusters",
        target="low level: normalised pixels",
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
            source="facebookresearch/mae PRETRAIN.md, which the paper keeps, ViT-B/16, 400 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="no official code",
        notes=(
            "Masks are random for the first eighth of the run, the paper's 50 of 400 epochs. The "
            "bi-partition, ranking by likeness to the object's patches and hints are the paper's; from what "
            "was at hand of it, some choices had to be ours: edges of (1 + cosine) / 2, the object as the "
            "side with the patch furthest from the cut (TokenCut), a tenth of the hidden patches as hints, "
            "drawn at random. The next patches in rank are hidden for them, so that the ratio stays exact. "
            "Every step looks at the whole image once more, without gradient. The decoder keeps its "
            "published proportion to ViT-B, as in MAE."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        random_share: Annotated[float, Field(ge=0, le=1)] = 50 / 400,
        hint: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        layer: Annotated[float, Field(gt=0, le=1)] = 1.0,
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.random_share, self.hint, self.norm_pix = random_share, hint, norm_pix
        # Of the encoder's blocks, counted from the end.
        self.layer = max(1, round(layer * backbone.depth)) - backbone.depth - 1
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        if step.progress < self.random_share:
            mask = self.masking(step.keys, self.encoder.grid)
        else:
            mask = self.guided(self.scores(images, step.keys), step.keys)
        return self.losses(images, mask, step.keys)

    @torch.no_grad()
    def scores(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """How alike each patch of the whole image is to its object, [B, N]."""
        ((_, patches),) = self.encoder.encode(images, layers=(self.layer,), keys=keys).layers
        return object_scores(patches.to(images.dtype))

    def guided(self, scores: Tensor, keys: Tensor) -> Tensor:
        """Hide the patches of the largest scores but for some hints, bool [B, N]. scores: [B, N]."""
        n = scores.shape[1]
        n_hidden = self.masking.hidden_cells(self.encoder.grid)
        n_hints = min(round(self.hint * n_hidden), n - n_hidden)
        largest = mask_from_scores(scores, n_hidden)
        # A random score is below 1, so that hints are drawn among the largest.
        hints = mask_from_scores(random_scores(keys, n, "mask/hints") + largest, n_hints)
        return mask_from_scores(scores.masked_fill(hints, -torch.inf), n_hidden)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())
