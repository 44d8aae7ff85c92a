"""TinyMIM: a small encoder that learns how a large one's tokens relate to each other."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.blocks import query_key_value
from method_zoo.parts.images import Denormalise
from method_zoo.parts.patches import joined
from method_zoo.parts.relations import Relations, check_heads, divergence, relations
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View


class TinyMIM(Method):
    """TinyMIM (Ren et al., 2023, arXiv:2301.01296).

    Distils a teacher that was trained by masked image modelling: the last block's queries, keys and
    values relate the tokens of the whole image to each other as those of a middle block of the teacher do.
    """

    card = Card(
        key="tinymim",
        name="TinyMIM",
        paper="TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
        authors="Ren, Wei, Zhang, Hu",
        year=2023,
        arxiv="2301.01296",
        code="https://github.com/OliverRensu/TinyMIM",
        scheme="reconstruction",
        masking="none",
        target="high level, frozen teacher: token relations",
        architecture="ViT encoder without a decoder",
        objective="reconstruction (KL divergence of relations)",
        classes=Classes(
            masking="none",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=15 / 300,
            drop_path=0.1,
            augmentation=Augmentation(
                crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True, color_jitter=0.4
            ),
            source="OliverRensu/TinyMIM README and models_tinymim.py, ViT-B/16 on ImageNet-1K, 300 epochs",
        ),
        readout=Readout(layer=-2, token="mean"),
        backbone={"positions": "sincos", "init": "mae", "drop_path_rule": "constant"},
        parity="verified",
        notes=(
            "The released code masks nothing; the paper's ablation of masking is not part of it. The "
            "student's colours are jittered, the teacher sees the same crop as it is. Relations are taken in "
            "as many heads as the teacher has, which the code also gives to the student's last block; here "
            "that block keeps its own in attention, which the loss does not see. teacher_layer is block 18 "
            "of MAE-L's 24, as published; the code's ViT-S and B teachers give their last. What follows the "
            "last block's queries, keys and values is never trained, so the readout is the block before; the "
            "authors fine-tune all of it. Drop path is constant over blocks, as in the code. Teachers of "
            "another size than the backbone, such as MAE-L, are given as file or timm weights."
        ),
    )
    needs = {"teacher": "mae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        teacher_layer: Annotated[float, Field(gt=0, le=1)] = 18 / 24,
    ):
        super().__init__()
        self.encoder = backbone
        check_heads(backbone.embed_dim, teacher.num_heads)
        self.teacher = cast(nn.Module, teacher)
        # Of the teacher's blocks, counted from the end.
        self.teacher_layer = max(1, round(teacher_layer * teacher.depth)) - teacher.depth - 1
        self.denormalise = Denormalise(self.card)
        self.views = (View(image_size=backbone.config["image_size"], crop="same"),)
        # The loss sees the last block's queries, keys and values; what follows them would only decay.
        last = self.encoder.blocks[-1]
        for untrained in (last.attn.proj, last.norm2, last.mlp, self.encoder.norm):
            untrained.requires_grad_(False)

    def forward(self, images: Tensor, step: Step) -> Losses:
        plain = self.denormalise(step.views[1].images)
        return self.losses(images, self.target(plain), step.keys)

    @torch.no_grad()
    def target(self, images: Tensor) -> Relations:
        """The teacher's relations. images: float [B, 3, S, S] in [0, 1]."""
        layer = self.teacher_layer
        with torch.autocast(images.device.type, enabled=False):
            (before,) = self.teacher.encode(images, layers=(layer - 1,)).layers
            qkv = self.teacher.query_key_value(layer, joined(*before))
        return relations(qkv, heads=self.teacher.num_heads)

    def losses(self, images: Tensor, target: Relations, keys: Tensor | None = None) -> Losses:
        """Losses under given relations of the same image's tokens."""
        (before,) = self.encoder.encode(images, layers=(-2,), keys=keys).layers
        # A teacher without a class token tells nothing of the student's, which comes first.
        tokens = joined(*before)[:, -target.query_key.shape[-1] :]
        qkv = query_key_value(self.encoder.blocks[-1], tokens)
        found = relations(qkv, heads=target.query_key.shape[1])
        return Losses(
            query_key=divergence(found.query_key, target.query_key),
            value_value=divergence(found.value_value, target.value_value),
        )
