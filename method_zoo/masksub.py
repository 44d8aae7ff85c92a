"""MaskSub: masking meets supervision."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.labels import labels_of
from method_zoo.parts.masking import RandomMask
from mimbench import rng
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MaskSub(Method):
    """Masked sub-branch (Heo et al., 2025, arXiv:2306.11339).

    Supervised training bears strong masking badly. Here the network learns from labels on the whole image
    and, beside it, from its own soft prediction on a half of the patches: what a masked image cannot tell
    is not asked of it.
    """

    card = Card(
        key="masksub",
        name="MaskSub",
        paper="Masking meets Supervision: A Strong Learning Alliance",
        authors="Heo, Kim, Yun, Han",
        year=2025,
        arxiv="2306.11339",
        code="https://github.com/naver-ai/augsub",
        scheme="none",
        masking="random",
        target="labels; own prediction on the whole image",
        architecture="ViT encoder on all and on visible patches, linear classifier",
        objective="classification (binary or plain cross-entropy) and self-distillation",
        classes=Classes(
            masking="random",
            target="own features + labels",
            architecture="plain transformer",
            objective="classification",
        ),
        external="labels",
        recipe=Recipe(
            base_lr=5e-4,
            lr_rule="per_512",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=5 / 400,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0),
                interpolation="bicubic",
                flip=True,
                color_jitter=0.3,
                grayscale=1 / 3,
                blur=1 / 3,
                solarize=1 / 3,
            ),
            source=(
                "naver-ai/augsub deit/README.md, ViT-S/16 on ImageNet-1K, 400 epochs; its LAMB with 4e-3 "
                "is replaced by the AdamW of facebookresearch/deit"
            ),
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "learned", "layer_scale": 1e-4, "init": "mae"},
        parity="not compared",
        notes=(
            "A way to train with labels, not a pre-training of its own. Official code exists but no record "
            "of it was at hand: the losses are tested against their definition. As in the code each branch "
            "counts half, the sub-branch keeps int(N/2) patches and its target is the main branch's "
            "prediction without gradient. loss=bce is DeiT III's, which the published runs from scratch use; "
            "loss=ce that of fine-tuning runs, which also pool the patches (pool=mean). Mixup, cutmix and "
            "repeated augmentation are not part of the harness; grey, blur and solarisation are drawn one by "
            "one, where the published recipe draws one of the three. Initial weights are MAE's."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        loss: Literal["bce", "ce"] = "bce",
        pool: Literal["cls", "mean"] = "cls",
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.loss, self.pool = loss, pool
        self.classifier = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, labels_of(step, self.card), step.keys)

    def losses(self, images: Tensor, mask: Tensor, labels: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given classes, int64 [B]."""
        sub_keys = None if keys is None else rng.branch(keys, "masksub")
        main = self.logits(self.encoder.encode(images, keys=keys)).to(images.dtype)
        sub = self.logits(self.encoder.encode(images, mask, fill="drop", keys=sub_keys)).to(images.dtype)
        truth = F.one_hot(labels, main.shape[1]).to(main.dtype)
        return Losses(
            labels=self._distance(main, truth) / 2,
            masked=self._distance(sub, self._probabilities(main)) / 2,
        )

    def logits(self, encoded: Encoded) -> Tensor:
        """Class scores, [B, classes]."""
        return self.classifier(encoded.cls if self.pool == "cls" else encoded.patches.mean(1))

    @torch.no_grad()
    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.loss == "bce" else logits.softmax(-1)

    def _distance(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with soft targets [B, classes]: of each class on its own, or over all of them."""
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, target)
        return F.cross_entropy(logits, target)
