"""MTO: masked token optimisation, on SimMIM."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import attention_probabilities
from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.losses import pixel_distance
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import joined
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MTO(Method):
    """Masked token optimisation (Choi et al., 2024, arXiv:2404.08330), with SimMIM as its base.

    A mask token says nothing of the image where it enters the encoder, yet visible tokens take it in as
    if it did, and nothing tells it from a patch. Two terms are added to the base's loss, the stronger the
    earlier the block: visible tokens are to leave mask tokens out when they gather from others, and mask
    tokens are to be unlike every visible one ("data singularity").
    """

    card = Card(
        key="mto",
        name="MTO",
        paper="Emerging Property of Masked Token for Effective Pre-training",
        authors="Choi, Lee, Joung, Park, Kim, Min",
        year=2024,
        arxiv="2404.08330",
        code="https://github.com/doihye/MTO",
        scheme="reconstruction",
        masking="random, cells of 32 pixels",
        target="low level: pixels",
        architecture="ViT encoder with mask tokens, linear head",
        objective="reconstruction (L1), exclusion and singularity of mask tokens",
        classes=Classes(
            masking="random",
            target="pixels",
            architecture="plain transformer",
            objective="reconstruction + other",
        ),
        recipe=Recipe(
            base_lr=1e-4,
            lr_rule="per_512",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=10 / 800,
            warmup_start_lr=4 * 5e-7,
            schedule="multistep",
            milestones=(700 / 800,),
            clip_grad=5.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.67, 1.0), interpolation="bilinear", flip=True),
            source="microsoft/SimMIM simmim_pretrain__vit_base__img224__800ep.yaml: the base's recipe",
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
        parity="own formulas",
        notes=(
            "The paper adds its terms to any method with mask tokens; here to SimMIM. Neither its code nor "
            "its formulas were at hand, only its two aims in words (semantically empty mask tokens are "
            "excluded from what visible tokens gather; singularity is asked for by depth), so that both "
            "terms are written from these and are not the authors' expressions: the share of attention "
            "that visible tokens, the class token among them, give to mask tokens, and the mean squared "
            "cosine between mask tokens and visible patches, at the input of each block of the first half "
            "with weights that fall linearly to zero. The terms' weights, 0.1 each, are ours. Tables mark "
            "the row, so that nobody takes it for the published method."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6,
        mask_unit: Annotated[int, Field(ge=1)] = 2,
        exclusion_weight: Annotated[float, Field(ge=0)] = 0.1,
        singularity_weight: Annotated[float, Field(ge=0)] = 0.1,
        early: Annotated[float, Field(gt=0, le=1)] = 0.5,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio, unit=mask_unit)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        self.exclusion_weight, self.singularity_weight = exclusion_weight, singularity_weight
        self.head = nn.Linear(backbone.embed_dim, 3 * backbone.patch_size**2)
        truncated_normal_(self.head)
        n_early = max(1, round(early * backbone.depth))
        # What each of the early blocks gets: the output of the one before, of the embedding first.
        self.layers = tuple(range(-backbone.depth - 1, -backbone.depth - 1 + n_early))

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        encoded = self.encoder.encode(images, mask, fill="token", layers=self.layers, keys=keys)
        predicted = self.head(encoded.patches[mask])
        exclusion, singularity = self.terms(encoded, mask, images.dtype)
        return Losses(
            reconstruction=pixel_distance(predicted, images, mask, self.encoder.patch_size),
            exclusion=self.exclusion_weight * exclusion,
            singularity=self.singularity_weight * singularity,
        )

    def terms(self, encoded: Encoded, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Exclusion and singularity, scalars: means over the early blocks, the first of which counts most."""
        weights = [1 - i / len(self.layers) for i in range(len(self.layers))]
        exclusion, singularity = [], []
        for i, (weight, (cls, patches)) in enumerate(zip(weights, encoded.layers, strict=True)):
            bias = self.encoder.position_bias(i % max(1, len(self.encoder.rel_pos)))
            attention = attention_probabilities(self.encoder.blocks[i], joined(cls, patches), bias)
            exclusion.append(weight * attention_to_masked(attention.to(dtype), mask))
            singularity.append(weight * likeness(patches.to(dtype), mask))
        total = sum(weights)
        return torch.stack(exclusion).sum() / total, torch.stack(singularity).sum() / total


def attention_to_masked(attention: Tensor, mask: Tensor) -> Tensor:
    """Share of attention that visible tokens give to hidden ones, a scalar.

    attention: probabilities [B, heads, T, T]. mask: bool [B, N], True = hidden; what comes before the N
    patches is visible.
    """
    hidden = F.pad(mask, (attention.shape[-1] - mask.shape[1], 0))
    share = (attention.mean(1) * hidden.unsqueeze(1)).sum(-1)  # [B, T]
    return share[~hidden].mean()


def likeness(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean squared cosine of hidden and visible tokens of an image, over all pairs of all images.

    tokens: [B, N, D]; mask: bool [B, N], True = hidden.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens, dim=-1)
        squared = (unit @ unit.transpose(1, 2)).square()
        pairs = mask.unsqueeze(2) & ~mask.unsqueeze(1)
        return squared[pairs].mean()
