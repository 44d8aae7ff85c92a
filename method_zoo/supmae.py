"""SupMAE: supervised masked autoencoders are efficient vision learners."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.heads import mlp_head
from method_zoo.parts.labels import labels_of
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class SupMAE(Method):
    """Supervised masked autoencoder (Liang et al., 2022, arXiv:2205.14540).

    A masked autoencoder whose visible tokens also have to tell the image's class: their mean goes through
    an MLP. Local features come from reconstruction, global ones from the label, and a decoder of one
    block is enough.
    """

    card = Card(
        key="supmae",
        name="SupMAE",
        paper="SupMAE: Supervised Masked Autoencoders Are Efficient Vision Learners",
        authors="Liang, Li, Marculescu",
        year=2022,
        arxiv="2205.14540",
        code="https://github.com/enyac-group/supmae",
        scheme="reconstruction",
        masking="random",
        target="low level: normalised pixels; labels",
        architecture="ViT encoder on visible patches, transformer decoder, MLP classifier",
        objective="reconstruction (L2) and classification (cross-entropy)",
        classes=Classes(
            masking="random",
            target="pixels + labels",
            architecture="plain transformer",
            objective="reconstruction + classification",
        ),
        external="labels",
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=20 / 400,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="enyac-group/supmae PRETRAIN.md, ViT-B/16 on ImageNet-1K, 400 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The published model (mae_vit_base_patch16_d1b) has a decoder of one block; its width keeps the "
            "published proportion to ViT-B. head_dim=None is 4 times the encoder's width, the published 3072 "
            "for ViT-B; 0 leaves a linear classifier. The code divides logits by a temperature of 10, which "
            "the paper does not mention (temperature=1). The classifier's batch norm sees the batch of all "
            "processes."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm_pix: bool = True,
        class_weight: Annotated[float, Field(ge=0)] = 0.01,
        temperature: Annotated[float, Field(gt=0)] = 10.0,
        pool: Literal["mean", "cls"] = "mean",
        head_dim: Annotated[int, Field(ge=0)] | None = None,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] = 1,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.norm_pix, self.pool = norm_pix, pool
        self.class_weight, self.temperature = class_weight, temperature
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        width = backbone.embed_dim
        head_dim = 4 * width if head_dim is None else head_dim
        widths = (width, head_dim, num_classes) if head_dim else (width, num_classes)
        self.classifier: nn.Module = mlp_head(widths, norm="batch", running_statistics=True)
        xavier_(self.classifier)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, labels_of(step, self.card), step.keys)

    def losses(self, images: Tensor, mask: Tensor, labels: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given classes, int64 [B]."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        logits = self.classifier(encoded.patches.mean(1) if self.pool == "mean" else encoded.cls)
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(
            reconstruction=error.mean(),
            labels=self.class_weight * F.cross_entropy(logits.to(images.dtype) / self.temperature, labels),
        )
