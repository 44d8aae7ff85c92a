"""iBOT: image BERT pre-training with online tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage, cosine
from method_zoo.parts.prototypes import Centre, ProjectionHead, Prototypes, cross_entropy, warmed_up
from method_zoo.parts.varying_masks import VaryingMask
from method_zoo.parts.views import crop_size, view_keys
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, le=1)]
COLOURS = Augmentation(
    color_jitter=0.4, saturation=0.2, hue=0.1, jitter_probability=0.8, grayscale=0.2, interpolation="bicubic"
)

RECIPE = Recipe(
    base_lr=5e-4,
    lr_rule="per_256",
    batch_size=1024,
    betas=(0.9, 0.999),
    weight_decay=0.04,
    weight_decay_end=0.4,
    warmup=10 / 800,
    min_lr=1e-6,
    clip_grad=3.0,
    drop_path=0.1,
    augmentation=COLOURS.model_copy(update={"crop_scale": (0.25, 1.0), "blur": 1.0}),
    source=("bytedance/ibot README and main_ibot.py, ViT-S/16 with multi-crop on ImageNet-1K, 800 epochs"),
)


class Head(nn.Module):
    """A projection and the prototypes of class tokens and of patches, which are the same when ``shared``."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, out: int, patch_out: int | None, gain: bool):
        super().__init__()
        self.projection = ProjectionHead(dim, hidden, bottleneck)
        self.classes = Prototypes(bottleneck, out, gain)
        self.patches = None if patch_out is None else Prototypes(bottleneck, patch_out, gain)

    def of_classes(self, tokens: Tensor, learn: bool = True) -> Tensor:
        """Logits [..., out] of class tokens [..., dim]."""
        return self.classes(self.projection(tokens), learn)

    def of_patches(self, projected: Tensor, learn: bool = True) -> Tensor:
        """Logits [..., patch_out] of projected patches; linear in them."""
        return (self.patches or self.classes)(projected, learn)


class IBOT(HandsOnAverage, Method):
    """iBOT (Zhou et al., 2022, arXiv:2111.07832).

    A student that sees crops with hidden patches predicts what a moving average of itself makes of the
    whole crops: at hidden patches the distribution over prototypes that the teacher gives that patch
    (its online tokens), and in the class token the one it gives the other global crop.
    """

    card = Card(
        key="ibot",
        name="iBOT",
        paper="iBOT: Image BERT Pre-Training with Online Tokenizer",
        authors="Zhou, Wei, Wang, Shen, Xie, Yuille, Kong",
        year=2022,
        arxiv="2111.07832",
        code="https://github.com/bytedance/ibot",
        scheme="both",
        masking="block, varying share",
        target="high level: tokens of a moving average over learned prototypes",
        architecture="ViT encoder with mask tokens, projection head, moving average, multi-crop",
        objective="classification (cross-entropy to sharpened targets) of patches and class tokens",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="classification",
        ),
        recipe=RECIPE,
        readout=Readout(token="cls"),
        backbone={"positions": "learned", "mask_token": True, "init": "dino"},
        parity="verified",
        notes=(
            "Published with 10 local crops; the default of 4 is cheaper. Handed on is the moving "
            "average, whose numbers the authors publish. The head has its published size (2048, 2048, "
            "256) beside ViT-S and larger encoders and keeps its proportion to ViT-S beside smaller ones. "
            "Of patches only the hidden ones get logits; the centre needs the mean of all patches' logits, "
            "which is the logits of their mean. As in the code, an image without a hidden patch counts as "
            "zero in the mean patch loss, and patches are compared within a crop, class tokens between "
            "crops. The teacher has no drop path and no dropout, so that it makes no difference that the "
            "code leaves it in train mode. norm_last_layer follows the ViT-B command; the one for ViT-S has "
            "false."
        ),
    )

    attends: ClassVar[bool] = False  # whether masks look at the teacher's attention

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        mask_spread: Share = 0.2,
        unmasked: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        block_masks: bool = True,
        local_crops: Annotated[int, Field(ge=0)] = 4,
        local_size: Annotated[float, Field(gt=0, le=1)] = 96 / 224,
        out_dim: Annotated[int, Field(ge=2)] = 8192,
        patch_out_dim: Annotated[int, Field(ge=2)] | None = None,
        hidden_dim: Annotated[int, Field(ge=1)] | None = None,
        bottleneck_dim: Annotated[int, Field(ge=1)] | None = None,
        norm_last_layer: bool = True,
        freeze_last_layer: Share = 1 / 800,
        student_temp: Temperature = 0.1,
        teacher_temp: Temperature = 0.07,
        teacher_temp_start: Temperature = 0.04,
        teacher_temp_warmup: Share = 30 / 800,
        centre_momentum: Share = 0.9,
        momentum: Share = 0.996,
        class_weight: Annotated[float, Field(ge=0)] = 1.0,
        patch_weight: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = VaryingMask(mask_ratio, mask_spread, unmasked, block_masks)
        size = backbone.grid[0] * backbone.patch_size
        second = COLOURS.model_copy(update={"crop_scale": (0.25, 1.0), "blur": 0.1, "solarize": 0.2})
        local = COLOURS.model_copy(update={"crop_scale": (0.05, 0.25), "blur": 0.5})
        small = View(augmentation=local, image_size=crop_size(backbone, local_size))
        self.views = (View(augmentation=second, image_size=size), *[small] * local_crops)

        hidden = hidden_dim or min(2048, round(backbone.embed_dim * 2048 / 384))
        bottleneck = bottleneck_dim or min(256, round(backbone.embed_dim * 256 / 384))
        self.head = Head(
            backbone.embed_dim, hidden, bottleneck, out_dim, patch_out_dim, gain=not norm_last_layer
        )
        self.teacher = MovingAverage(encoder=self.encoder, head=self.head)
        self.class_centre = Centre(out_dim, centre_momentum)
        self.patch_centre = Centre(patch_out_dim or out_dim, centre_momentum)
        self.freeze_last_layer, self.student_temp = freeze_last_layer, student_temp
        self.teacher_temp, self.teacher_temp_start = teacher_temp, teacher_temp_start
        self.teacher_temp_warmup, self.momentum = teacher_temp_warmup, momentum
        self.class_weight, self.patch_weight = class_weight, patch_weight

    def forward(self, images: Tensor, step: Step) -> Losses:
        crops = [view.images for view in step.views]
        whole = self.seen_whole(crops)
        masks = self.masks(whole, view_keys(step.keys, (0, 1)))
        return self.losses(crops, masks, step.progress, step.keys, whole)

    @torch.no_grad()
    def seen_whole(self, crops: Sequence[Tensor]) -> Encoded:
        """The teacher's tokens of both global crops without a mask, 2·B of them."""
        return self.teacher["encoder"].encode(torch.cat(list(crops[:2])), attention=self.attends)

    def masks(self, whole: Encoded, keys: Tensor) -> Tensor:
        """What is hidden of the global crops, bool [2·B, N]."""
        return self.masking(keys, self.encoder.grid)

    def losses(
        self,
        crops: Sequence[Tensor],
        masks: Tensor,
        progress: float,
        keys: Tensor | None = None,
        whole: Encoded | None = None,
    ) -> Losses:
        """Losses of two global crops [B, 3, S, S] and any local ones, [B, 3, s, s], under given masks.

        masks: bool [2·B, N], True = hidden, of the first global crop's images, then of the second's.
        whole: what the teacher sees in these crops, where it is known already.
        """
        global_crops = torch.cat(list(crops[:2]))
        dtype, batch = global_crops.dtype, len(crops[0])
        learn = progress >= self.freeze_last_layer
        temperature = warmed_up(
            self.teacher_temp_start, self.teacher_temp, progress, self.teacher_temp_warmup
        )
        whole = whole or self.seen_whole(crops)
        class_targets, patch_targets = (t.to(dtype) for t in self.targets(whole, masks, temperature))

        seen = self.encoder.encode(global_crops, masks, fill="token", keys=self._keys(keys, (0, 1)))
        class_tokens = [seen.cls]
        if len(crops) > 2:
            views = range(2, len(crops))
            local_crops = torch.cat(list(crops[2:]))
            class_tokens.append(self.encoder.encode(local_crops, keys=self._keys(keys, views)).cls)
        logits = self.head.of_classes(torch.cat(class_tokens), learn).to(dtype) / self.student_temp
        student, teacher = logits.split(batch), class_targets.split(batch)
        pairs = [(q, v) for q in range(2) for v in range(len(student)) if q != v]
        class_loss = sum(cross_entropy(student[v], teacher[q]).mean() for q, v in pairs) / len(pairs)

        hidden = self.head.of_patches(self.head.projection(seen.patches[masks]), learn).to(dtype)
        # Each image weighs the same, however many patches it hides.
        weights = (1 / masks.sum(1, keepdim=True).clamp(min=1).to(dtype)).expand_as(masks)[masks]
        patch_loss = (cross_entropy(hidden / self.student_temp, patch_targets) * weights).sum() / len(masks)
        return Losses(classes=self.class_weight * class_loss, patches=self.patch_weight * patch_loss)

    @torch.no_grad()
    def targets(self, whole: Encoded, masks: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The teacher's distributions for each image, [2·B, out], and each hidden patch, [hidden, out].

        The centres take note of the logits behind them.
        """
        head = self.teacher["head"]
        classes = head.of_classes(whole.cls)
        projected = head.projection(whole.patches)
        patches = head.of_patches(projected[masks])
        class_targets = (self.class_centre(classes) / temperature).softmax(-1)
        patch_targets = (self.patch_centre(patches) / temperature).softmax(-1)
        self.class_centre.observe(classes.mean(0))
        self.patch_centre.observe(head.of_patches(projected.mean((0, 1))))
        return class_targets, patch_targets

    def _keys(self, keys: Tensor | None, views: Sequence[int]) -> Tensor | None:
        return None if keys is None else view_keys(keys, views)

    def after_step(self, step: Step) -> None:
        self.class_centre.update()
        self.patch_centre.update()
        self.teacher.update(cosine(self.momentum, 1.0, step.progress), encoder=self.encoder, head=self.head)
