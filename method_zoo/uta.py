"""UTA: enhancing vision-language models with unmasked token alignment."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask, RandomMask
from method_zoo.parts.patches import take, where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class UTA(Method):
    """Unmasked token alignment (Liu et al., 2024, arXiv:2405.19009).

    The encoder sees blocks of patches only and nothing in place of the others; a linear layer points each
    visible token, the class token too, in the direction of what a teacher makes of the whole image there.
    """

    card = Card(
        key="uta",
        name="UTA",
        paper="Enhancing Vision-Language Model with Unmasked Token Alignment",
        authors="Liu, Zheng, Liu, Liu, Li",
        year=2024,
        arxiv="2405.19009",
        code="https://github.com/jihaonew/UTA",
        scheme="reconstruction",
        masking="inverse block",
        target="high level: teacher features of visible patches",
        architecture="ViT encoder on visible patches, linear head",
        objective="alignment (negative cosine)",
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
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            warmup=1 / 150,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "EVA-02-B/16 on ImageNet-21K, 150 epochs (baaivision/EVA EVA-02/asuka), whose settings the "
                "paper takes over; the released code does not train"
            ),
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "learned", "qkv_bias": "query_value", "init": "beit"},
        parity="no official code",
        notes=(
            "The released code only evaluates. The paper's student is EVA-02's transformer (rotary "
            "positions, SwiGLU), its teacher EVA-CLIP with its projection, through which the student can be "
            "read by CLIP's text encoder; here the student is the plain ViT with EVA's options, the teacher "
            "the one given, or one trained first on the same data. Without a class token in both, patches "
            "alone are aligned. The reversed block-wise mask draws the visible blocks as BEiT draws hidden "
            "ones and fills their count up at random; masking=random is the paper's ablation."
        ),
    )
    needs = {"teacher": "ibot"}
    alignment = "head"

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        masking: Literal["inverse_block", "random"] = "inverse_block",
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher, self.plain = teacher, Denormalise(self.card)
        self.random = RandomMask(mask_ratio) if masking == "random" else None
        n_patches = backbone.grid[0] * backbone.grid[1]
        smallest = max(1, round(min_block * n_patches))
        self.shown = BlockMask(ratio=1 - mask_ratio, min_block=smallest, exact=True)
        self.shown.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.head = nn.Linear(backbone.embed_dim, teacher.embed_dim)
        truncated_normal_(self.head)

    def mask(self, keys: Tensor) -> Tensor:
        """Hidden patches, bool [B, N], equally many in each row."""
        grid = self.encoder.grid
        return self.random(keys, grid) if self.random is not None else ~self.shown(keys, grid)

    def forward(self, images: Tensor, step: Step) -> Losses:
        with torch.no_grad():
            seen = self.teacher.encode(self.plain(images))
        return self.losses(images, self.mask(step.keys), seen.patches, seen.cls, step.keys)

    def losses(
        self,
        images: Tensor,
        mask: Tensor,
        features: Tensor,
        cls: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        features: the teacher's, [B, N, D]; cls: its class token, [B, D], None where it has none.
        """
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        tokens, target = encoded.patches, take(features, where(~mask))
        if encoded.cls is not None and cls is not None:
            tokens = torch.cat([encoded.cls.unsqueeze(1), tokens], dim=1)
            target = torch.cat([cls.unsqueeze(1), target], dim=1)
        predicted = self.head(tokens).to(images.dtype)
        return Losses(cosine=-F.cosine_similarity(predicted, target.to(images.dtype), dim=-1).mean())
