"""CAPI: cluster and predict latent patches for improved masked image modeling."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import drop_path_scales
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.rope_vit import RopeViT, Seen
from method_zoo.backbones.rotary import RotaryBlock
from method_zoo.parts.collective import largest
from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage
from method_zoo.parts.inverse_block import InverseBlockMask
from method_zoo.parts.masking import mask_from_scores, random_scores
from method_zoo.parts.patches import take, where
from method_zoo.parts.prototypes import Prototypes, cross_entropy, sinkhorn
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Ratio = Annotated[float, Field(gt=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, le=1)]


class Predictor(nn.Module):
    """Mask tokens at given places that look at an encoder's tokens, and not at each other."""

    def __init__(self, encoder: RopeViT, depth: int):
        super().__init__()
        dim, self.drop_path = encoder.embed_dim, encoder.drop_path
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(RotaryBlock(dim, encoder.num_heads) for _ in range(depth))
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoder: RopeViT, seen: Seen, index: Tensor, keys: Tensor | None) -> Tensor:
        """What is at the patches ``index`` [B, n] of the whole grid, through the encoder's kind of norm."""
        places = take(encoder.places(encoder.grid).expand(len(index), -1, -1), index)
        here, there = encoder.rotary(places), encoder.rotary(seen.places)
        x = self.mask_token.expand(*index.shape, -1)
        rates = [self.drop_path if self.training else 0.0] * len(self.blocks)
        scales = drop_path_scales(rates, x, keys, "drop path/predictor")
        for i, block in enumerate(self.blocks):
            x = block(x, here, seen.tokens, there, None if scales is None else scales[i])
        return encoder.final_norm(x)


class CAPI(HandsOnAverage, Method):
    """Cluster and predict (Darcet et al., 2025, arXiv:2502.08769).

    A moving average of the encoder sees the whole image; its patch tokens are assigned to clusters, evenly
    over the batch, and a linear layer learns to tell these clusters. The student sees one block of the
    image and predicts, from mask tokens that look at it, the clusters of some of the hidden patches.
    """

    card = Card(
        key="capi",
        name="CAPI",
        paper="Cluster and Predict Latent Patches for Improved Masked Image Modeling",
        authors="Darcet, Baldassarre, Oquab, Mairal, Bojanowski",
        year=2025,
        arxiv="2502.08769",
        code="https://github.com/facebookresearch/capi",
        scheme="contrastive",
        masking="inverse block, rolled",
        target="high level: clusters of a moving average's patch tokens",
        architecture="ViT encoder on visible patches, cross-attention predictor, moving average",
        objective="classification (cross-entropy to balanced cluster assignments)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="classification",
        ),
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=16384,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            warmup=50_000 / 500_000,
            min_lr=9.55e-5,
            drop_path=0.2,
            augmentation=Augmentation(crop_scale=(0.6, 1.0), interpolation="bicubic", flip=True),
            source=(
                "facebookresearch/capi default_pretrain_config.yaml, ViT-L/14 on ImageNet-22K, 500,000 steps "
                "of 32 GPUs x 512"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "rope", "registers": 16},
        parity="verified",
        notes=(
            "The encoder is CAPI's own: rotary positions, registers, RMS norms, no biases, no class token. "
            "Published with 16384 clusters and images a batch; assignments are balanced over the batch at "
            "each position, so the default of 2048 clusters suits smaller batches. The code trains the "
            "clusters by an AdamW of their own at half the rate (5e-4, weight decay 0.01), the patch "
            "embedding at a fifth of the rate and decays norms by 0.01; here one optimiser trains all alike. "
            "Its schedules are half cosines cut off at four fifths: the momentum is, the rate ends at that "
            "cosine's last value. The code pairs channels of the rotary positions across rows and columns, "
            "which is no rotation; followed here, as the released weights have it. It learns their "
            "frequencies at a rate of zero; here they are fixed. Drop path is drawn image by image where the "
            "code leaves out a fixed number of the batch. The code computes losses in float32. The "
            "predictor has half the encoder's depth, as published. At least one patch is predicted on "
            "grids where 5 percent of the hidden ones are less. The authors read out patches of the moving "
            "average by attentive pooling; it is handed on here too."
        ),
    )
    couples_batch = True
    encoder: RopeViT

    def __init__(
        self,
        backbone: RopeViT,
        *,
        hand_on: HandOn = "average",
        mask_ratio: Ratio = 0.65,
        roll: bool = True,
        predicted_share: Annotated[float, Field(gt=0, le=1)] = 0.05,
        clusters: Annotated[int, Field(ge=2)] = 2048,
        predictor_depth: Annotated[int, Field(ge=1)] | None = None,
        student_temp: Temperature = 0.12,
        target_temp: Temperature = 0.06,
        cluster_temp: Temperature = 0.12,
        balance_rounds: Annotated[int, Field(ge=1)] = 3,
        by_position: bool = True,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.999,
    ):
        super().__init__()
        if not isinstance(backbone, RopeViT):
            raise UserError("capi trains an encoder with rotary positions; leave its backbone options alone")
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = InverseBlockMask(mask_ratio, roll)
        self.n_predicted = max(1, int(self.masking.n_hidden(backbone.grid) * predicted_share))
        self.predictor = Predictor(backbone, predictor_depth or max(1, round(backbone.depth / 2)))
        self.head = Prototypes(backbone.embed_dim, clusters, gain=True)
        self.teacher = MovingAverage(encoder=self.encoder)
        self.clusters = nn.Linear(backbone.embed_dim, clusters)
        nn.init.normal_(self.clusters.weight, std=1)
        nn.init.zeros_(self.clusters.bias)
        self.student_temp, self.target_temp, self.cluster_temp = student_temp, target_temp, cluster_temp
        self.balance_rounds, self.by_position, self.momentum = balance_rounds, by_position, momentum

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        scores = random_scores(step.keys, mask.shape[1], "predicted") + mask  # hidden ones come first
        return self.losses(images, mask, where(mask_from_scores(scores, self.n_predicted)), step.keys)

    def losses(self, images: Tensor, mask: Tensor, index: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, predicting the patches ``index`` [B, n]."""
        assignments, clustering = self.cluster(images)
        predicted = self.predictor(self.encoder, self.encoder.see(images, mask, keys), index, keys)
        logits = self.head(F.normalize(predicted, dim=-1)).to(images.dtype)
        prediction = cross_entropy(logits / self.student_temp, take(assignments, index)).mean()
        return Losses(prediction=prediction, clustering=clustering)

    def cluster(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Assignments of the whole image's patches, [B, N, clusters], and how well the clusters tell them."""
        with torch.no_grad():
            tokens = F.normalize(self.teacher["encoder"].encode(images).patches, dim=-1, eps=1e-7)
        logits = self.clusters(tokens).to(images.dtype)
        assignments = self.balanced(logits.detach())
        return assignments, cross_entropy(logits / self.cluster_temp, assignments).mean()

    @torch.no_grad()
    def balanced(self, logits: Tensor) -> Tensor:
        """Assignments [B, N, clusters] that use all clusters alike, at each position or over all patches."""
        scores = logits / self.target_temp
        scores = scores.transpose(0, 1) if self.by_position else scores.flatten(0, 1)
        # Each cluster's largest score becomes exp(50): far from overflow, and only small ones underflow.
        scores = (scores + 50 - largest(scores.amax(-2, keepdim=True))).exp()
        scores = sinkhorn(scores, self.balance_rounds, eps=1e-8)
        return scores.transpose(0, 1) if self.by_position else scores.unflatten(0, logits.shape[:2])

    def after_step(self, step: Step) -> None:
        self.teacher.update(self.momentum_at(step.progress), encoder=self.encoder)

    def momentum_at(self, progress: float) -> float:
        """1 at first; down to ``momentum`` over a tenth of the run, then up along the cosine of the rate."""
        if progress < 0.1:
            change = progress / 0.1
        else:
            change = (1 + math.cos(math.pi * 0.8 * (progress - 0.1) / 0.9)) / 2
        return 1 - change * (1 - self.momentum)
