"""MaskDistill: a unified view of masked image modeling."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.targets import FeatureNorm, normalised_features
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MaskDistill(Method):
    """MaskDistill (Peng et al., 2022, arXiv:2210.10615).

    Blocks of patches become a mask token in the encoder's input; a linear layer on its output predicts
    what a teacher makes of the whole image at the hidden places, each feature vector normalised.
    """

    card = Card(
        key="maskdistill",
        name="MaskDistill",
        paper="A Unified View of Masked Image Modeling",
        authors="Peng, Dong, Bao, Ye, Wei",
        year=2022,
        arxiv="2210.10615",
        scheme="reconstruction",
        masking="block",
        target="high level: teacher features",
        architecture="ViT encoder with mask tokens, linear head",
        objective="reconstruction (smooth L1)",
        classes=Classes(
            masking="random",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=1.5e-3,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=10 / 300,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.1,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True, color_jitter=0.4
            ),
            source=(
                "ViT-B/16 on ImageNet-1K, 300 epochs; the authors released no code, so what the paper shares "
                "with BEiT is taken from microsoft/unilm beit"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "none",
            "rel_pos": "shared",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="no official code",
        notes=(
            "microsoft/unilm's unimim is a README without code; student, masks and recipe follow BEiT, whose "
            "authors' method it is. The published teacher is CLIP ViT-B/16; without a given one a teacher is "
            "trained first on the same data. The paper does not give where its smooth L1 turns from square "
            "to line: beta is torch's default."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        normalise: FeatureNorm = "whiten",
        loss: Literal["smooth_l1", "l2", "cosine"] = "smooth_l1",
        beta: Annotated[float, Field(gt=0)] = 1.0,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher, self.plain = teacher, Denormalise(self.card)
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, round(min_block * n_patches)))
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.normalise, self.loss, self.beta = normalise, loss, beta
        self.head = nn.Linear(backbone.embed_dim, teacher.embed_dim)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        with torch.no_grad():
            features = self.teacher.encode(self.plain(images)).patches
        return self.losses(images, self.masking(step.keys, self.encoder.grid), features, step.keys)

    def losses(self, images: Tensor, mask: Tensor, features: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given teacher features [B, N, D]."""
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        predicted = self.head(encoded.patches[mask]).to(images.dtype)
        target = normalised_features(features[mask].to(images.dtype), self.normalise)
        return Losses(features=self._distance(predicted, target))

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.loss == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        if self.loss == "l2":
            return F.mse_loss(predicted, target)
        return F.smooth_l1_loss(predicted, target, beta=self.beta)
