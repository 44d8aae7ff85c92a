"""EVA: exploring the limits of masked visual representation learning at scale."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class EVA(Method):
    """EVA (Fang et al., 2023, arXiv:2211.07636).

    Blocks of patches become a mask token in the encoder's input; a linear layer on its output points in
    the direction of what a teacher makes of the whole image at the hidden places.
    """

    card = Card(
        key="eva",
        name="EVA",
        paper="EVA: Exploring the Limits of Masked Visual Representation Learning at Scale",
        authors="Fang, Wang, Xie, Sun, Wu, Wang, Huang, Wang, Cao",
        year=2023,
        arxiv="2211.07636",
        code="https://github.com/baaivision/EVA/tree/master/EVA-01/eva",
        scheme="reconstruction",
        masking="block",
        target="high level: teacher features",
        architecture="ViT encoder with mask tokens, linear head",
        objective="reconstruction (negative cosine)",
        classes=Classes(
            masking="random",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=4096,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            warmup=2 / 150,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="baaivision/EVA EVA-01/eva/README.md, EVA-g/14 on 30M merged images, 150 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "learned",
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="verified",
        notes=(
            "The published teacher is CLIP ViT-L/14 with its projection, the student a ViT-g/14 that sees "
            "the teacher's normalisation of the pixels; here the teacher is the one given, or one trained "
            "first on the same data, and its features are those after its final norm. Images are normalised "
            "as by the other methods. 105 of 256 patches are hidden; mask_ratio and min_block keep the "
            "code's shares on other grids. Block masks may hide a few patches fewer, as the code's do."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 105 / 256,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 256,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher, self.plain = teacher, Denormalise(self.card)
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, round(min_block * n_patches)))
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
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
        target = features[mask].to(images.dtype)
        return Losses(cosine=-F.cosine_similarity(predicted, target, dim=-1).mean())
