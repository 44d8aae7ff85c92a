"""DropPos: pre-training vision transformers by reconstructing dropped positions."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.collective import summed
from method_zoo.parts.decoders import TransformerDecoder, decoder_size
from method_zoo.parts.masking import RandomMask, mask_from_scores, random_scores
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

TEMPERATURE = 0.1  # of the similarities that weigh patches


class DropPos(Method):
    """Reconstructing dropped positions (Wang et al., 2023, arXiv:2309.03576).

    The encoder sees a few patches, most of them without their position; a light decoder tells where each
    of these belongs. Near places count as partly right, less and less so, and patches that look like the
    whole image count more.
    """

    card = Card(
        key="droppos",
        name="DropPos",
        paper="DropPos: Pre-Training Vision Transformers by Reconstructing Dropped Positions",
        authors="Wang, Fan, Wang, Song, Wang, Zhang",
        year=2023,
        arxiv="2309.03576",
        code="https://github.com/Haochen-Wang409/DropPos",
        scheme="reconstruction",
        masking="random, of patches and of positions",
        target="low level: positions",
        architecture="ViT encoder on visible patches, transformer decoder without positions",
        objective="classification (cross-entropy over positions)",
        classes=Classes(
            masking="random",
            target="other",
            architecture="plain transformer",
            objective="classification",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=2048,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=10 / 800,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="Haochen-Wang409/DropPos PRETRAIN.md, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The decoder of 512 x 2 keeps its published proportion to ViT-B. Soft targets are exp(-d²/σ²) of "
            "the distance in patches; the code divides each by the sum of its column, where the paper's rows "
            "sum to one (row_targets=true), which differs near the border. σ falls linearly to 0 with every "
            "step, in the code with every epoch. Patches weigh by the softmax of the cosine of their token "
            "and the class token in the whole image, as in the published command; attentive=false weighs "
            "them alike. The code's variants with an additional pixel decoder, shuffled tokens or ignored "
            "confident patches are left out."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        position_mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        sigma: Annotated[float, Field(ge=0)] = 1.0,
        sigma_decay: bool = True,
        row_targets: bool = False,
        attentive: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        if getattr(backbone, "pos_embed", None) is None:
            raise UserError(
                "DropPos drops positions, and this backbone has none; leave its positions as they are"
            )
        if attentive and not backbone.config.get("cls_token"):
            raise UserError("DropPos weighs patches by the class token; set attentive=false without one")
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        n_patches = backbone.grid[0] * backbone.grid[1]
        n_visible = n_patches - self.masking.hidden_cells(backbone.grid)
        self.n_dropped = RandomMask(position_mask_ratio).hidden_cells((1, n_visible))
        self.sigma, self.sigma_decay, self.row_targets = sigma, sigma_decay, row_targets
        self.attentive = attentive
        self.position_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
        nn.init.normal_(self.position_token, std=0.02)
        dim, depth, heads = decoder_size(
            backbone, decoder_dim, decoder_depth, decoder_heads, published=(512, 2)
        )
        self.embed = nn.Linear(backbone.embed_dim, dim)
        xavier_(self.embed)
        mlp_ratio = backbone.config["mlp_ratio"]
        self.decoder = TransformerDecoder(dim, depth, heads, n_patches, mlp_ratio)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        visible = int((~mask[0]).sum())
        dropped = mask_from_scores(random_scores(step.keys, visible, "positions"), self.n_dropped)
        targets = self.targets(step.progress, images)
        weights = self.likeness(images, step.keys) if self.attentive else None
        return self.losses(images, mask, dropped, targets, weights, step.keys)

    def targets(self, progress: float, like: Tensor) -> Tensor:
        """Soft targets, [N, N]: in row i how right each position is for the patch of position i."""
        sigma = self.sigma * (1 - progress) if self.sigma_decay else self.sigma
        height, width = self.encoder.grid
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(like)
        squared = (places.unsqueeze(1) - places).square().sum(-1)
        if sigma == 0:
            return (squared == 0).to(like)
        right = (-squared / sigma**2).exp()
        return right / right.sum(1, keepdim=self.row_targets)

    @torch.no_grad()
    def likeness(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """How much each patch looks like the whole image, [B, N], a distribution in each row."""
        encoded = self.encoder.encode(images, keys=keys)
        cosine = F.cosine_similarity(encoded.cls.unsqueeze(1), encoded.patches, dim=-1)
        return (cosine.to(images.dtype) / TEMPERATURE).softmax(-1)

    def losses(
        self,
        images: Tensor,
        mask: Tensor,
        dropped: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        dropped: bool [B, n], which of the n visible patches, in raster order, lack their position.
        targets: [N, N], see ``targets``. weights: of all patches, [B, N]; None for equal ones.
        """
        kept = where(~mask)
        positions = self.encoder.pos_embed[0, self.encoder.prefix :][kept].detach()
        encoded = self.encoder.encode(
            images,
            mask,
            keys=keys,
            # The encoder is about to add the position that is taken off here.
            edits={0: lambda x: torch.where(dropped.unsqueeze(-1), x - positions + self.position_token, x)},
        )
        tokens = [self.embed(encoded.patches)]
        if encoded.cls is not None:
            tokens.insert(0, self.embed(encoded.cls).unsqueeze(1))
        logits = self.decoder(torch.cat(tokens, dim=1), last=kept.shape[1]).to(images.dtype)
        error = -(targets[kept] * logits.log_softmax(-1)).sum(-1)
        counted = dropped.to(images.dtype)
        if weights is not None:
            seen = weights.gather(1, kept)
            counted = counted * seen / seen.sum(1, keepdim=True)
        return Losses(positions=summed((error * counted).sum()) / summed(counted.sum()))
