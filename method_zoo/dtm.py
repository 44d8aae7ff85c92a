"""DTM: morphing tokens draw strong masked image models."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.merging import group_means, merged_groups
from method_zoo.parts.targets import normalised
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class DTM(Method):
    """Dynamic token morphing (Kim et al., 2025, arXiv:2401.00254).

    Blocks of patches become a mask token in the encoder's input; a linear layer on its output predicts
    what a teacher makes of the image. Both are compared after tokens that the teacher finds alike have
    become their mean; how many become one, and in how many rounds, is drawn anew for each image and level.
    """

    card = Card(
        key="dtm",
        name="DTM",
        paper="Morphing Tokens Draw Strong Masked Image Models",
        authors="Kim, Heo, Han",
        year=2025,
        arxiv="2401.00254",
        code="https://github.com/naver-ai/dtm",
        scheme="reconstruction",
        masking="block",
        target="high level: teacher features, alike tokens merged",
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
            betas=(0.9, 0.98),
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
                "naver-ai/dtm docs/Training.md and defaults, ViT-B/16 on ImageNet-1K, 300 epochs; warm-up "
                "and betas, which are left open there, from BEiT v2, whose code it is built on"
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
        parity="verified",
        notes=(
            "The published teacher is CLIP ViT-B/16 with its projection; without a given one a teacher is "
            "trained first on the same data, and features are those after its final norm. As in the code, "
            "the loss is over all tokens, visible ones too, and the first patch never merges into another, "
            "as if it were the class token. The code draws one schedule a batch, here each image has its "
            "own. 196 tokens in at most 14 rounds are the code's limits; the share of tokens carries over "
            "to other grids. The code scales its learning rate with the root of the batch size, here it "
            "is that of 2048 images. The paper's distance is the cosine (loss=cosine), the code's default "
            "the smooth L1 loss."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 75 / 196,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        levels: Annotated[int, Field(ge=1)] = 2,
        max_merged: Annotated[float, Field(gt=0, le=1)] = 1.0,
        max_rounds: Annotated[int, Field(ge=1)] = 14,
        norm_features: bool = False,
        loss: Literal["smooth_l1", "cosine", "l2", "l1"] = "smooth_l1",
        beta: Annotated[float, Field(gt=0)] = 2.0,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher, self.plain = teacher, Denormalise(self.card)
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, round(min_block * n_patches)))
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.levels, self.max_merged, self.max_rounds = levels, round(max_merged * n_patches), max_rounds
        self.norm_features, self.loss, self.beta = norm_features, loss, beta
        self.head = nn.Linear(backbone.embed_dim, teacher.embed_dim)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        with torch.no_grad():
            features = self.teacher.encode(self.plain(images)).patches
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(
            images, mask, features, self.groups(features, *self.schedule(step.keys)), step.keys
        )

    def schedule(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens are to merge, and in how many rounds, for each image and level: int64 [B, L]."""
        draws = rng.uniform(keys, 2 * self.levels, "merging")
        merged = (draws[:, : self.levels] * (self.max_merged + 1)).long().clamp(max=self.max_merged)
        rounds = 1 + (draws[:, self.levels :] * self.max_rounds).long().clamp(max=self.max_rounds - 1)
        return merged, rounds

    def groups(self, features: Tensor, merged: Tensor, rounds: Tensor) -> Tensor:
        """The teacher's alike tokens at each level, int64 [L, B, N]. merged, rounds: int64 [B, L].

        A round merges merged / rounds tokens, rounded up where that makes no more than allowed in all.
        """
        rounded_up = -(-merged // rounds)
        too_many = rounded_up * rounds > self.max_merged
        per_round = torch.where(too_many, merged // rounds, rounded_up)
        tokens = features.detach().repeat(self.levels, 1, 1)
        groups = merged_groups(tokens, per_round.T.flatten(), rounds.T.flatten(), self.max_rounds)
        return groups.unflatten(0, (self.levels, -1))

    def losses(
        self, images: Tensor, mask: Tensor, features: Tensor, groups: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        features: the teacher's, [B, N, D]; groups: its alike tokens at each level, int64 [L, B, N].
        """
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        predicted, features = self.head(encoded.patches).to(images.dtype), features.to(images.dtype)
        total = images.new_zeros(())
        for alike in groups:
            target = group_means(features, alike)
            if self.norm_features:
                target = normalised(target)
            total = total + self._distance(group_means(predicted, alike), target)
        return Losses(features=total / len(groups))

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.loss == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1, eps=1e-6).mean()
        if self.loss == "smooth_l1":
            return F.smooth_l1_loss(predicted, target, beta=self.beta)
        return F.mse_loss(predicted, target) if self.loss == "l2" else F.l1_loss(predicted, target)
