"""Latent MIM: towards latent masked image modeling for self-supervised visual representation learning."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import stretched_positions
from method_zoo.parts.collective import averaged
from method_zoo.parts.contrast import patch_contrast
from method_zoo.parts.cross import CrossDecoder
from method_zoo.parts.decoders import decoder_size
from method_zoo.parts.ema import MovingAverage, cosine
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from method_zoo.parts.targets import normalised
from mimbench import rng
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1)]


class LatentMIM(Method):
    """Latent MIM (Wei, Gupta & Morgado, 2024, arXiv:2407.15837).

    From a tenth of the patches a decoder, which looks at them by cross-attention, predicts features that a
    moving average gives the hidden ones. Each prediction is to be told from the others of its image. Four
    things keep that from being trivial: gaps between the patches, a moving average that sees the hidden
    patches only, mask tokens with a cue of what is near, and a bound on how alike features are.
    """

    card = Card(
        key="latentmim",
        name="Latent MIM",
        paper="Towards Latent Masked Image Modeling for Self-Supervised Visual Representation Learning",
        authors="Wei, Gupta, Morgado",
        year=2024,
        arxiv="2407.15837",
        code="https://github.com/yibingwei-1/LatentMIM",
        scheme="contrastive",
        masking="random, with gaps between patches",
        target="high level: projected features of a moving average",
        architecture="ViT encoder on visible patches, projector, cross-attention decoder, moving average",
        objective="discrimination of the patches of an image (InfoNCE), similarity constraint",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="contrastive",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 800,
            min_lr=0.25 * 2.4e-3,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="yibingwei-1/LatentMIM README.md, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "stretched", "init": "mae"},
        parity="verified",
        notes=(
            "The training image comes twice, at its size and larger by the gaps; from each cell of the "
            "larger one a patch is cut at a random place, so that encoder and grid stay what they are. As "
            "in the code the place is never the last one possible. The published 20 of 196 visible "
            "patches, gap of 4 of 16 pixels and projector of 4096 for a width of 768 are shares here. The "
            "similarity constraint compares the mean over the batch with its target, so that it couples "
            "images. The published command switches it on (avg_sim_coeff=0.1), the code's defaults do not "
            "(similarity_weight=0). Positions are learned in code defaults that the published "
            "configuration overrules; a backbone with learned positions makes the decoder's learned, too."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 176 / 196,
        gap: Annotated[float, Field(ge=0, le=1)] = 4 / 16,
        target_sees: Literal["hidden", "all"] = "hidden",
        visual_cues: bool = True,
        loss: Literal["infonce", "l2"] = "infonce",
        temperature: Annotated[float, Field(gt=0)] = 0.2,
        similarity_weight: Annotated[float, Field(ge=0)] = 0.1,
        similarity_start: Share = 0.75,
        similarity_end: Share = 0.25,
        projector_dim: Size | None = None,
        projector_depth: Size = 3,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Size | None = None,
        decoder_heads: Size | None = None,
        momentum_start: Share = 0.99,
        momentum_end: Share = 1.0,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.gap = round(gap * backbone.patch_size)  # pixels
        if self.gap:
            size = backbone.grid[0] * (backbone.patch_size + self.gap)
            assert self.card.recipe is not None
            self.views = (View(augmentation=self.card.recipe.augmentation, image_size=size, crop="same"),)
        self.target_sees, self.loss, self.temperature = target_sees, loss, temperature
        self.similarity_weight = similarity_weight
        self.similarity_start, self.similarity_end = similarity_start, similarity_end
        self.momentum_start, self.momentum_end = momentum_start, momentum_end

        width = backbone.embed_dim
        hidden = [projector_dim or round(width * 4096 / 768)] * (projector_depth - 1)
        self.projector = projector([width, *hidden, width])
        dim, depth, heads = decoder_size(
            backbone, decoder_dim, decoder_depth, decoder_heads, published=(512, 3)
        )
        self.tokens = CuedTokens(
            width, dim, backbone.grid, visual_cues, learned=backbone.config.get("positions") == "learned"
        )
        mlp_ratio = float(backbone.config.get("mlp_ratio", 4.0))
        self.decoder = CrossDecoder(dim, depth, heads, width, self_attention="before", mlp_ratio=mlp_ratio)
        self.teacher = MovingAverage(encoder=self.encoder, projector=self.projector)

    def forward(self, images: Tensor, step: Step) -> Losses:
        if self.gap:
            shifts = rng.uniform(step.keys, 2 * self.encoder.grid[0] * self.encoder.grid[1], "gaps")
            images = self.with_gaps(step.views[1].images, (shifts * self.gap).long())
        similarity = cosine(self.similarity_start, self.similarity_end, step.progress)
        return self.losses(images, self.masking(step.keys, self.encoder.grid), similarity, step.keys)

    def with_gaps(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Images [B, 3, S, S] of patches that lie apart in the larger images [B, 3, S', S'].

        shifts: int64 [B, 2 * N], where in its cell each patch begins, in pixels: first all rows, then all
        columns.
        """
        size, cell = self.encoder.patch_size, self.encoder.patch_size + self.gap
        (height, width), line = self.encoder.grid, torch.arange(size, device=images.device)
        cells = images.unflatten(3, (width, cell)).unflatten(2, (height, cell)).transpose(3, 4)
        rows, columns = shifts.view(len(images), 2, 1, height, width, 1, 1).unbind(1)
        cells = cells.gather(4, (rows + line.view(-1, 1)).expand(-1, 3, -1, -1, -1, cell))
        cells = cells.gather(5, (columns + line).expand(-1, 3, -1, -1, size, -1))
        return cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    @torch.no_grad()
    def targets(self, images: Tensor, mask: Tensor) -> Tensor:
        """What the moving average makes of the hidden patches, [B, n, D]."""
        if self.target_sees == "hidden":
            patches = self.teacher["encoder"].encode(images, ~mask, fill="drop").patches
        else:
            patches = take(self.teacher["encoder"].encode(images).patches, where(mask))
        return self.teacher["projector"](patches).to(images.dtype)

    def losses(self, images: Tensor, mask: Tensor, similarity: float, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and a given target of similarity."""
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        assert encoded.cls is not None
        visible = encoded._replace(cls=self.projector(encoded.cls), patches=self.projector(encoded.patches))
        queries, context = self.tokens(visible, where(mask))
        predicted = self.decoder(queries, context, last=queries.shape[1] - 1).to(images.dtype)
        losses = Losses(features=self._distance(predicted, self.targets(images, mask)))
        if self.similarity_weight:
            for name, features in (("predicted", predicted), ("visible", visible.patches.to(images.dtype))):
                excess = averaged(mean_similarity(features)) - similarity
                losses[f"similarity_{name}"] = self.similarity_weight * excess.square()
        return losses

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.loss == "l2":
            return F.mse_loss(predicted, normalised(target))
        predicted = predicted - predicted.mean(1, keepdim=True)
        predicted = predicted / (predicted.std(1, keepdim=True) + 1e-4)
        own = torch.arange(target.shape[1], device=target.device).expand(len(target), -1)
        return 2 * self.temperature * patch_contrast(predicted, target, own, self.temperature)

    def after_step(self, step: Step) -> None:
        momentum = cosine(self.momentum_start, self.momentum_end, step.progress)
        self.teacher.update(momentum, encoder=self.encoder, projector=self.projector)


def projector(widths: list[int]) -> nn.Sequential:
    """Linear layers without bias, each followed by a layer norm, with GELUs between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.LayerNorm(after), nn.GELU()]
    head = nn.Sequential(*layers[:-1])
    xavier_(head)
    return head


def mean_similarity(features: Tensor) -> Tensor:
    """The cosine of two patches of an image, over all pairs of all images. features: [B, n, D]."""
    # The mean over all pairs, each patch with itself included, is the squared length of the mean direction.
    return F.normalize(features, dim=-1).mean(1).square().sum(-1).mean()


class CuedTokens(nn.Module):
    """A decoder's queries, mask tokens that have a cue of the visible patches near them, and its context.

    The cue is a mean over the visible patches, weighted by how alike their positions are (the paper's
    visual cues). learned: whether positions are learned, starting from the fixed ones.
    """

    positions: Tensor

    def __init__(self, encoder_dim: int, dim: int, grid: tuple[int, int], cues: bool, learned: bool):
        super().__init__()
        self.cues = cues
        self.embed = nn.Linear(encoder_dim, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = F.pad(stretched_positions(dim, grid), (0, 0, 1, 0))  # the class token's first
        if learned:
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table, persistent=False)
        xavier_(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, visible: Encoded, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, 1 + m, dim], class token first, and context [B, 1 + n, dim].

        hidden: raster indices of the hidden patches, [B, m].
        """
        assert visible.cls is not None
        assert visible.kept is not None
        patches = self.embed(visible.patches)
        sources, places = self.positions[visible.kept + 1], self.positions[hidden + 1]
        queries = self.mask_token.expand(len(hidden), hidden.shape[1], -1)
        if self.cues:
            weights = (places @ sources.transpose(1, 2) * sources.shape[-1] ** -0.5).softmax(-1)
            queries = queries + weights @ patches
        first = self.positions[0]
        queries = torch.cat([(self.cls_token + first).expand(len(hidden), -1, -1), queries + places], dim=1)
        context = torch.cat([self.embed(visible.cls).unsqueeze(1) + first, patches + sources], dim=1)
        return queries, context
