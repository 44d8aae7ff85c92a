"""MSN: masked siamese networks for label-efficient learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.collective import averaged
from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage
from method_zoo.parts.heads import mlp_head
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.prototypes import Prototypes, cross_entropy, sinkhorn
from method_zoo.parts.views import crop_size, view_keys
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
RANDOM = Augmentation(
    crop_scale=(0.3, 1.0),
    interpolation="bilinear",
    color_jitter=0.4,
    hue=0.1,
    jitter_probability=0.8,
    grayscale=0.2,
    blur=0.5,
)
FOCAL = RANDOM.model_copy(update={"crop_scale": (0.05, 0.3)})


class MSN(HandsOnAverage, Method):
    """Masked siamese networks (Assran et al., 2022, arXiv:2204.07141).

    A student that sees part of the patches of one crop, and small crops, is to assign the image to the
    prototypes to which a moving average of itself assigns another, whole crop. That assignment is
    sharpened and balanced over the batch, and the student's mean assignment is kept spread.
    """

    card = Card(
        key="msn",
        name="MSN",
        paper="Masked Siamese Networks for Label-Efficient Learning",
        authors="Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas",
        year=2022,
        arxiv="2204.07141",
        code="https://github.com/facebookresearch/msn",
        scheme="contrastive",
        masking="random",
        target="high level: assignment of a moving average to learned prototypes",
        architecture="ViT encoder on visible patches, projection head, moving average, multi-crop",
        objective="classification (cross-entropy to sharpened targets), entropy of the mean assignment",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="classification",
        ),
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=1024,
            betas=(0.9, 0.999),
            weight_decay=0.04,
            weight_decay_end=0.366,
            warmup=15 / 800,
            warmup_start_lr=2e-4,
            min_lr=1e-4,
            clip_grad=3.0,
            augmentation=RANDOM,
            source=(
                "facebookresearch/msn configs/pretrain/msn_vits16.yaml, ViT-S/16 on ImageNet-1K, 800 epochs, "
                "16 GPUs x 64 as in its README"
            ),
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "learned", "init": "dino", "interpolate_offset": 0.0},
        parity="verified",
        notes=(
            "Published with 1 random and 10 focal crops; the default of 4 focal ones is cheaper. The code "
            "draws one mask for the whole batch and all crops, here each image and crop has its own. Its "
            "schedules are cut off at four fifths of their length: the momentum is too, the rate and the "
            "weight decay (of 0.4) end at their last values. Weight decay also holds for the prototypes, "
            "whose length does not matter. Handed on is the moving average, whose numbers the authors "
            "publish. The code computes the cross-entropy as log(p^-t), here it is taken from "
            "the logits. The released settings compute an entropy term with a weight of zero "
            "(entropy_weight). The paper drops 15 percent of the patches with ViT-S and up to 70 percent "
            "with ViT-L. The head has its published size (2048, 2048, 256) beside ViT-S and larger encoders "
            "and keeps its proportion beside smaller ones. The patch embedding starts from torch's draw, "
            "the code's from a normal one."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15,
        random_views: Annotated[int, Field(ge=1)] = 1,
        focal_views: Annotated[int, Field(ge=0)] = 4,
        focal_size: Annotated[float, Field(gt=0, le=1)] = 96 / 224,
        prototypes: Annotated[int, Field(ge=2)] = 1024,
        hidden_dim: Annotated[int, Field(ge=1)] | None = None,
        out_dim: Annotated[int, Field(ge=1)] | None = None,
        temperature: Annotated[float, Field(gt=0, le=1)] = 0.1,
        sharpen: Annotated[float, Field(gt=0, le=1)] = 0.25,
        balance: bool = True,
        spread_weight: Weight = 1.0,
        entropy_weight: Weight = 0.0,
        momentum: Share = 0.996,
    ):
        super().__init__()
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = RandomMask(mask_ratio)
        self.masking.hidden_cells(backbone.grid)  # a ratio too small for the grid is found out now
        self.random_views = random_views
        self.views = (
            *[View(augmentation=RANDOM, image_size=crop_size(backbone, 1.0))] * random_views,
            *[View(augmentation=FOCAL, image_size=crop_size(backbone, focal_size))] * focal_views,
        )
        hidden = hidden_dim or min(2048, round(backbone.embed_dim * 2048 / 384))
        out = out_dim or min(256, round(backbone.embed_dim * 256 / 384))
        self.head = mlp_head([backbone.embed_dim, hidden, hidden, out], activation="gelu")
        for part in self.head:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.prototypes = Prototypes(out, prototypes)
        nn.init.uniform_(self.prototypes.weight, -(out**-0.5), out**-0.5)
        self.teacher = MovingAverage(encoder=self.encoder, head=self.head)
        self.temperature, self.sharpen, self.balance = temperature, sharpen, balance
        self.spread_weight, self.entropy_weight = spread_weight, entropy_weight
        self.momentum = momentum

    def forward(self, images: Tensor, step: Step) -> Losses:
        crops = [view.images for view in step.views]
        masks = self.masking(view_keys(step.keys, range(1, 1 + self.random_views)), self.encoder.grid)
        return self.losses(crops, masks, step.keys)

    def losses(self, crops: Sequence[Tensor], masks: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses of the target's crop [B, 3, S, S], then random ones, then focal ones, [B, 3, s, s].

        masks: bool [random views · B, N], True = hidden, of the random crops one after the other.
        """
        dtype = crops[0].dtype
        split = 1 + self.random_views
        seen = [self._features(crops[1:split], range(1, split), keys, masks)]
        if len(crops) > split:
            seen.append(self._features(crops[split:], range(split, len(crops)), keys))
        predicted = (self._cosines(torch.cat(seen), dtype) / self.temperature).log_softmax(-1)
        targets = self.targets(crops[0]).repeat(len(crops) - 1, 1)
        # Mean over processes too, so that all keep the same assignment spread; log K makes the least 0.
        mean = averaged(predicted.exp().mean(0))
        spread = (mean * mean.log()).sum() + math.log(len(mean))
        return Losses(
            assignment=-(targets * predicted).sum(-1).mean(),
            spread=self.spread_weight * spread,
            entropy=self.entropy_weight * cross_entropy(predicted, predicted.exp()).mean(),
        )

    def _features(
        self, crops: Sequence[Tensor], views: Sequence[int], keys: Tensor | None, masks: Tensor | None = None
    ) -> Tensor:
        """The student's projections of crops of one size, [views · B, out]."""
        keys = None if keys is None else view_keys(keys, views)
        return self.head(self.encoder.encode(torch.cat(list(crops)), masks, fill="drop", keys=keys).cls)

    def _cosines(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        # As in the code, half precision ends here: it is too coarse for exponentials at a low temperature.
        with torch.autocast(features.device.type, enabled=False):
            return self.prototypes(F.normalize(features.to(dtype), dim=-1))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's assignment of whole crops, sharpened, balanced over the batch: [B, prototypes]."""
        features = self.teacher["head"](self.teacher["encoder"].encode(images).cls)
        logits = self._cosines(features, images.dtype) / self.temperature
        targets = (logits / self.sharpen).softmax(-1)
        return sinkhorn(targets, iterations=3) if self.balance else targets

    def after_step(self, step: Step) -> None:
        momentum = self.momentum + (1 - self.momentum) * step.progress / 1.25
        self.teacher.update(momentum, encoder=self.encoder, head=self.head)
