"""The ceiling: the same encoder, trained with labels from the start."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.labels import labels_of
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class Supervised(Method):
    """A linear classifier on the mean of the encoder's final tokens, trained end to end.

    A reference, not a rival: it sees the labels that the other rows meet only in the probe.
    """

    card = Card(
        key="supervised",
        name="Supervised",
        paper="Better plain ViT baselines for ImageNet-1k",
        authors="Beyer, Zhai, Kolesnikov",
        year=2022,
        arxiv="2205.01580",
        code="https://github.com/google-research/big_vision/blob/main/big_vision/configs/vit_s16_i1k.py",
        role="ceiling",
        scheme="none",
        masking="none",
        target="labels",
        architecture="ViT encoder, linear head on the mean of its tokens",
        objective="classification (cross-entropy)",
        classes=Classes(
            masking="none",
            target="labels",
            architecture="plain transformer",
            objective="classification",
        ),
        external="labels",
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=1024,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            warmup=10_000 / 111_500,  # steps; of 90 epochs of 99 % of the images, as published
            clip_grad=1.0,
            augmentation=Augmentation(crop_scale=(0.05, 1.0), interpolation="bilinear", flip=True),
            source=(
                "big_vision vit_s16_i1k.py (arXiv:2205.01580), 90 epochs of ImageNet-1K; its decay of 1e-4 "
                "is not multiplied with the rate, which is 0.1 in AdamW's terms at the rate of 1e-3"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="baseline",
        notes=(
            "As published: mean of tokens instead of the class token, fixed sin-cos positions. Not used: the "
            "paper's RandAugment and mixup; label smoothing takes their place (0.1 as in DeiT, "
            "arXiv:2012.12877). Initialisation is MAE's, as in every other row but BEiT's and SimMIM's."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ):
        super().__init__()
        self.encoder = backbone
        self.label_smoothing = label_smoothing
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, step: Step) -> Losses:
        labels = labels_of(step, self.card)
        encoded = self.encoder.encode(images, keys=step.keys)
        logits = self.head(encoded.patches.mean(1)).to(images.dtype)
        return Losses(labels=F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing))
