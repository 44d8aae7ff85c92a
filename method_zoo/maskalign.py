"""MaskAlign: stare at what you see, masked image modeling without reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.attention_masks import AttentionMask
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from method_zoo.parts.targets import FeatureNorm, normalised_features
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Layer = tuple[Tensor | None, Tensor]  # class token [B, D] and patches [B, N, D], before a final norm


class MaskAlign(Method):
    """MaskAlign (Xue et al., 2023, arXiv:2211.08887).

    The encoder sees the patches that a teacher's class token attends to, and its visible tokens alone are
    to agree with the teacher's. Each of the teacher's last blocks is met by a learned mix of all the
    student's blocks, through a linear adaptor of its own.
    """

    card = Card(
        key="maskalign",
        name="MaskAlign",
        paper="Stare at What You See: Masked Image Modeling without Reconstruction",
        authors="Xue, Gao, Li, Qiao, Sun, Li, Luo",
        year=2023,
        arxiv="2211.08887",
        code="https://github.com/OpenDriveLab/maskalign",
        scheme="reconstruction",
        masking="guided by a network: teacher attention",
        target="high level: teacher features of visible patches",
        architecture="ViT encoder on visible patches, linear adaptors",
        objective="alignment (smooth L1)",
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
            warmup=20 / 200,
            min_lr=1e-5,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="OpenDriveLab/maskalign README.md, ViT-B/16 on ImageNet-1K, 200 epochs",
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The published teacher is CLIP ViT-B/16 (or CLIP ViT-L/14, DINO ViT-B/16); without a given one a "
            "teacher is trained first on the same data. The class token is aligned too, where both have one. "
            "Blocks are compared before the final norm, which therefore stays as initialised, as in the "
            "code. The code builds adaptors for all of the teacher's blocks, here only those that are used "
            "exist. Student and teacher may differ in depth: blocks then start out matched in proportion. "
            "The code's target_norm=bn, which takes statistics over the batch, is left out."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.7,
        masking: Literal["attention", "random"] = "attention",
        top_layers: Annotated[int, Field(ge=1)] | None = None,
        fusion: Literal["linear", "sum", "simple"] = "linear",
        normalise: FeatureNorm = "whiten",
        loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1",
        head: Literal["linear", "mlp"] = "linear",
    ):
        super().__init__()
        if top_layers is not None and top_layers > teacher.depth:
            raise UserError(
                f"a teacher of {teacher.depth} blocks has no {top_layers} top layers to align with"
            )
        self.encoder = backbone
        self.encoder.norm.requires_grad_(False)
        self.teacher, self.plain = teacher, Denormalise(self.card)
        self.masking = RandomMask(mask_ratio)
        self.attentive = AttentionMask(mask_ratio) if masking == "attention" else None
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.aligned = top_layers or min(5, teacher.depth)  # the published 5, or all of a shallower teacher
        self.normalise, self.loss = normalise, loss

        # Teacher blocks in rows, student blocks in columns.
        rows = torch.arange(1, teacher.depth + 1)
        columns = (rows * backbone.depth / teacher.depth).ceil().long() - 1
        mix = F.one_hot(columns, backbone.depth).float()
        if fusion == "simple":
            self.register_buffer("layer_weights", mix, persistent=False)
        else:
            mix = mix + 0.01 if fusion == "linear" else torch.full_like(mix, 1 / backbone.depth)
            self.layer_weights = nn.Parameter(mix)
        width, features = backbone.embed_dim, teacher.embed_dim

        def adaptor() -> nn.Module:
            if head == "linear":
                return nn.Linear(width, features)
            return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, features))

        self.adaptors = nn.ModuleList(adaptor() for _ in range(self.aligned))
        xavier_(self.adaptors)

    def forward(self, images: Tensor, step: Step) -> Losses:
        layers = range(-self.aligned, 0)
        with torch.no_grad():
            seen = self.teacher.encode(self.plain(images), layers, attention=self.attentive is not None)
        if self.attentive is None:
            mask = self.masking(step.keys, self.encoder.grid)
        else:
            mask = self.attentive(step.keys, seen)
        return self.losses(images, mask, seen.layers, step.keys)

    def losses(
        self, images: Tensor, mask: Tensor, features: Sequence[Layer], keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        features: class token and patches of the teacher's last ``aligned`` blocks, the last one last.
        """
        visible = where(~mask)
        layers = range(-self.encoder.depth, 0)
        encoded = self.encoder.encode(images, mask, fill="drop", layers=layers, keys=keys)
        with_cls = encoded.cls is not None and features[0][0] is not None
        student = torch.stack([_joined(cls if with_cls else None, x) for cls, x in encoded.layers])
        mixed = torch.einsum("ts,sbnd->tbnd", self.layer_weights[-self.aligned :], student)
        total = images.new_zeros(())
        for adaptor, tokens, (cls, patches) in zip(self.adaptors, mixed, features, strict=True):
            target = _joined(cls if with_cls else None, take(patches, visible)).to(images.dtype)
            target = normalised_features(target, self.normalise)
            total = total + self._distance(adaptor(tokens).to(images.dtype), target)
        return Losses(alignment=total / self.aligned)

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.loss == "smooth_l1":
            return 2 * F.smooth_l1_loss(predicted, target)
        return F.mse_loss(predicted, target) if self.loss == "l2" else F.l1_loss(predicted, target)


def _joined(cls: Tensor | None, patches: Tensor) -> Tensor:
    return patches if cls is None else torch.cat([cls.unsqueeze(1), patches], dim=1)
