"""ConMIM: masked image modeling with denoising contrast."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.contrast import patch_contrast
from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage, cosine
from method_zoo.parts.heads import mlp_head
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import joined, take, where
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Count = Annotated[int, Field(ge=1)]


class ConMIM(HandsOnAverage, Method):
    """Masked image modeling with denoising contrast (Yi et al., 2023, arXiv:2205.09616).

    A hidden patch's feature is to be told from those of the image's other patches by what a moving
    average sees at its place: the whole image, in stronger colours. The average takes the place of a
    tokenizer, the image's patches that of its vocabulary.
    """

    card = Card(
        key="conmim",
        name="ConMIM",
        paper="Masked Image Modeling with Denoising Contrast",
        authors="Yi, Ge, Li, Yang, Li, Wu, Shan, Qie",
        year=2023,
        arxiv="2205.09616",
        code="https://github.com/TencentARC/ConMIM",
        scheme="contrastive",
        masking="random, cells of 32 pixels",
        target="high level: features of a moving average, at each hidden patch",
        architecture="ViT encoder with mask tokens, MLP head, moving average",
        objective="contrast over the patches of an image (InfoNCE)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="contrastive",
        ),
        recipe=Recipe(
            base_lr=7.5e-4,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            warmup=10 / 1600,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            clip_grad=1.0,
            augmentation=Augmentation(crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True),
            source="TencentARC/ConMIM README.md, ViT-L/16 on ImageNet-1K, 1600 epochs, 32 GPUs x 64",
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
            "The published command is of ViT-L, whose layer scale is 1e-5; 0.1 is the code's for smaller "
            "ones. The head's batch norms are over all tokens of a batch, class token included, the "
            "average's by the statistics of its own batch, as in the code, which leaves it in training mode; "
            "over all processes here, over each GPU's share there. The authors fine-tune the average, which "
            "is handed on here too. The head is 16/3 widths wide and gives "
            "a third of a width, 4096 and 256 at ViT-B. Its figure was made for this project by running the "
            "official classes and loop body. What all patches of an image share helps nothing to tell them "
            "apart, so that in short runs on small images features are of places more than of images."
        ),
    )
    couples_batch = True  # by the head's batch norms; negatives are of the same image

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        mask_unit: Count = 2,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.996,
        head_hidden: Count | None = None,
        head_dim: Count | None = None,
    ):
        super().__init__()
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = RandomMask(mask_ratio, unit=mask_unit)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        stronger = Augmentation(
            color_jitter=0.4,
            saturation=0.2,
            hue=0.1,
            jitter_probability=0.8,
            grayscale=0.2,
            blur=0.1,
            solarize=0.2,
        )
        self.views = (View(augmentation=stronger, image_size=backbone.config["image_size"], crop="same"),)
        self.temperature, self.momentum = temperature, momentum
        width = backbone.embed_dim
        hidden, out = head_hidden or round(width * 4096 / 768), head_dim or max(1, width // 3)
        self.head = mlp_head((width, hidden, hidden, out), hidden_bias=False, last_bias=False, last_norm=True)
        truncated_normal_(self.head)
        self.teacher = MovingAverage(encoder=self.encoder, head=self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, step.views[1].images, mask, step.keys)

    def losses(self, images: Tensor, stronger: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden. stronger: the same crops, recoloured."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        queries = take(_projected(self.head, encoded), hidden)
        return Losses(contrast=patch_contrast(queries, self.targets(stronger), hidden, self.temperature))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's features of all patches of whole images, [B, N, D]."""
        encoded = self.teacher["encoder"].encode(images)
        return _projected(self.teacher["head"], encoded).to(images.dtype)

    def after_step(self, step: Step) -> None:
        momentum = cosine(self.momentum, 1.0, step.progress)
        self.teacher.update(momentum, encoder=self.encoder, head=self.head)


def _projected(head: nn.Module, encoded: Encoded) -> Tensor:
    """A head's output for the patches, [B, N, D], its statistics over class tokens too."""
    tokens = joined(encoded.cls, encoded.patches)
    return head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])[:, -encoded.patches.shape[1] :]
