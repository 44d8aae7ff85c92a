"""Hybrid Distillation: token relations of one teacher, features of another."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import query_key_value
from method_zoo.backbones.initial import xavier_
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import check_leaves_both, hide_redundant
from method_zoo.parts.patches import joined, take
from method_zoo.parts.relations import Relations, check_heads, divergence, relations
from method_zoo.parts.targets import normalised_features
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

STAGES = (0, 1 / 3, 2 / 3)  # of the depth: where the teacher's tokens tell which are redundant
Weight = Annotated[float, Field(gt=0)]


class HybridDistill(Method):
    """Hybrid Distillation (Shi et al., 2024, arXiv:2306.15876).

    Two frozen teachers: a contrastive or supervised one gives the features that the student's last block
    is to have, one of masked image modelling the relations of tokens to each other in a block before,
    which keeps attention diverse. The student sees no patches that the second teacher finds redundant.
    """

    card = Card(
        key="hybrid_distill",
        name="Hybrid Distill",
        paper="Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners",
        authors="Shi, Zhang, Wang, Li, Dai, Zou, Xiong, Tian",
        year=2024,
        arxiv="2306.15876",
        scheme="reconstruction",
        masking="guided by a network: redundant tokens of a teacher",
        target="high level, two frozen teachers: features, token relations",
        architecture="ViT encoder on visible patches, linear head",
        objective="regression of features (smooth L1), KL divergence of relations",
        classes=Classes(
            masking="network-guided",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=1024,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=20 / 300,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "the paper trains ViT-B on ImageNet-1K for 300 epochs with AdamW; the other numbers are "
                "MaskAlign's, as no code was released"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="no official code",
        notes=(
            "The paper's teachers are DeiT or CLIP for features and MAE for relations. Followed is its text: "
            "features of the last block by smooth L1, relations of an intermediate block by KL divergence, "
            "weighed alike, and a mask that leaves out, at three depths of the relations' teacher, the "
            "patches most similar to the average of what is left. No code was released; what is not settled "
            "by the text as we know it is set as in its neighbours: TinyMIM's relations (queries with keys, "
            "values with themselves) of the last block but one, among the visible tokens; features each "
            "normalised as in Feature Distillation; 30 percent of the patches left out at each depth. "
            "relation_layer, feature_norm, smooth and drop_share change that."
        ),
    )
    needs = {"teacher": "ibot", "mim_teacher": "mae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mim_teacher: Teacher,
        drop_share: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        relation_layer: Annotated[float, Field(gt=0, le=1)] = 11 / 12,
        relation_weight: Weight = 1.0,
        feature_norm: Literal["none", "l2", "whiten"] = "whiten",
        smooth: Weight = 1.0,
    ):
        super().__init__()
        self.encoder = backbone
        check_heads(backbone.embed_dim, mim_teacher.num_heads)
        self.teacher, self.mim_teacher = cast(nn.Module, teacher), cast(nn.Module, mim_teacher)
        self.denormalise = Denormalise(self.card)
        self.relation_weight, self.feature_norm, self.smooth = relation_weight, feature_norm, smooth
        # Counted from the end, as encoders do; the layers' inputs are one earlier.
        self.student_layer, self.mim_layer = (
            max(1, round(relation_layer * net.depth)) - net.depth - 1 for net in (backbone, mim_teacher)
        )
        self.stages = [int(stage * mim_teacher.depth) - mim_teacher.depth - 1 for stage in STAGES]
        left = n_patches = backbone.grid[0] * backbone.grid[1]
        self.amounts: list[int] = []  # of patches that each stage hides
        for _ in self.stages:
            self.amounts.append(round(drop_share * left))
            left -= self.amounts[-1]
        if sum(self.amounts):
            asked = f"{drop_share:g} in three stages"
            check_leaves_both(n_patches - left, n_patches, asked, backbone.grid)
        self.head = nn.Linear(backbone.embed_dim, teacher.embed_dim)
        xavier_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        with torch.autocast(images.device.type, enabled=False):
            mask, features, target = self.targets(self.denormalise(images))
        return self.losses(images, mask, features, target, step.keys)

    @torch.no_grad()
    def targets(self, images: Tensor) -> tuple[Tensor, Tensor, Relations]:
        """Mask (bool [B, N], True = hidden), features [B, N, F] and relations among the visible tokens.

        images: float [B, 3, S, S] in [0, 1].
        """
        features = normalised_features(self.teacher.encode(images).patches, self.feature_norm)
        layers = self.mim_teacher.encode(images, layers=(self.mim_layer - 1, *self.stages)).layers
        (cls, patches), *staged = layers
        mask = hide_redundant([stage for _, stage in staged], self.amounts)
        visible = joined(cls, patches[~mask].view(len(mask), -1, patches.shape[-1]))
        qkv = self.mim_teacher.query_key_value(self.mim_layer, visible)
        return mask, features, relations(qkv, heads=self.mim_teacher.num_heads)

    def losses(
        self, images: Tensor, mask: Tensor, features: Tensor, target: Relations, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask and given targets; see ``targets``."""
        layer = self.student_layer
        encoded = self.encoder.encode(images, mask, fill="drop", layers=(layer - 1,), keys=keys)
        assert encoded.kept is not None
        told = self.head(encoded.patches).to(features.dtype)
        # A teacher without a class token tells nothing of the student's, which comes first.
        tokens = joined(*encoded.layers[0])[:, -target.query_key.shape[-1] :]
        qkv = query_key_value(self.encoder.blocks[layer], tokens)
        found = relations(qkv, heads=target.query_key.shape[1])
        weight = self.relation_weight
        return Losses(
            features=F.smooth_l1_loss(told, take(features, encoded.kept), beta=self.smooth),
            query_key=weight * divergence(found.query_key, target.query_key),
            value_value=weight * divergence(found.value_value, target.value_value),
        )
