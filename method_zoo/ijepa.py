"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones.initial import shrink_outputs_, truncated_normal_
from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.ema import HandOn, HandsOnAverage, MovingAverage, linear
from method_zoo.parts.multiblock import MultiBlockMask
from method_zoo.parts.patches import take
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Share = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[int, Field(ge=1)]
Momentum = Annotated[float, Field(ge=0, le=1)]


class IJEPA(HandsOnAverage, Method):
    """I-JEPA (Assran et al., 2023, arXiv:2301.08243).

    The encoder sees one large block of patches; from it a narrow predictor, told by position which of four
    smaller blocks to predict, gives the features that the encoder's moving average has there, seeing the
    whole image.
    """

    card = Card(
        key="ijepa",
        name="I-JEPA",
        paper="Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
        authors="Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas",
        year=2023,
        arxiv="2301.08243",
        code="https://github.com/facebookresearch/ijepa",
        scheme="contrastive",
        masking="multi-block: four target blocks, a context block without them",
        target="high level: features of a moving average",
        architecture="ViT encoder on visible patches, transformer predictor, moving average",
        objective="regression of features (smooth L1)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.04,
            weight_decay_end=0.4,
            warmup=40 / 300,
            warmup_start_lr=2e-4,
            min_lr=1e-6,
            augmentation=Augmentation(crop_scale=(0.3, 1.0), interpolation="bilinear", flip=False),
            source="facebookresearch/ijepa configs/in1k_vith14_ep300.yaml, ViT-H/14, ImageNet-1K, 300 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "cls_token": False, "init": "ijepa"},
        parity="verified",
        notes=(
            "The code's loss is smooth L1, the paper's the squared distance (loss=l2). In the code blocks "
            "never reach the last row and column of the grid, because torch excludes the upper bound of "
            "the draw of their place: at 14 x 14 patches the context always starts in the first. That is "
            "taken for a mistake, the more harmful the smaller the grid; whole_grid=false has it. All "
            "images of a step have block sizes and a number of context patches in common, as in the code, "
            "but not by cutting to the smallest of the batch at hand: see MultiBlockMask. min_context, 10 "
            "patches in the code, is a share here. The predictor of 384 x 12 was published with ViT-L and "
            "H and 384 x 6 with ViT-B; here half of the encoder's width, at most 384, and half of its "
            "depth. Handed on is the moving average, which the paper evaluates."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        target_blocks: Size = 4,
        target_scale: Share = 0.15,
        target_spread: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        context_blocks: Size = 1,
        context_scale: Annotated[float, Field(gt=0, le=0.85)] = 0.85,
        min_context: Annotated[float, Field(ge=0, lt=1)] = 10 / 196,
        whole_grid: bool = True,
        loss: Literal["smooth_l1", "l2"] = "smooth_l1",
        predictor_dim: Annotated[int, Field(ge=4)] | None = None,
        predictor_depth: Size | None = None,
        predictor_heads: Size | None = None,
        momentum_start: Momentum = 0.996,
        momentum_end: Momentum = 1.0,
    ):
        super().__init__()
        self.encoder, self.hand_on = backbone, hand_on
        self.masking = MultiBlockMask(
            targets=target_blocks,
            contexts=context_blocks,
            target_scale=(target_scale, target_scale + target_spread),
            context_scale=(context_scale, context_scale + 0.15),
            min_context=min_context,
            whole_grid=whole_grid,
        )
        self.masking.check(backbone.grid)
        self.loss = loss
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        predictor_depth = predictor_depth or max(1, backbone.depth // 2)
        dim, depth, heads = decoder_size(
            backbone, predictor_dim, predictor_depth, predictor_heads, published=(384, 6)
        )
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        mlp_ratio = float(backbone.config.get("mlp_ratio", 4.0))
        self.predictor = TransformerDecoder(dim, depth, heads, backbone.embed_dim, mlp_ratio)
        for part in (self.mask_tokens, self.predictor):
            truncated_normal_(part, cut=100)
        shrink_outputs_(self.predictor.blocks)
        self.teacher = MovingAverage(encoder=self.encoder)

    def forward(self, images: Tensor, step: Step) -> Losses:
        blocks = self.masking(step.keys, self.encoder.grid, step.progress)
        return self.losses(images, blocks.contexts, blocks.targets, step.keys)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the moving average makes of whole images, normalised by token, [B, N, D]."""
        features = self.teacher["encoder"].encode(images).patches.to(images.dtype)
        return F.layer_norm(features, features.shape[-1:])

    def losses(self, images: Tensor, contexts: Tensor, targets: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under given blocks: contexts int64 [E, B, n] and targets int64 [T, B, m], raster indices."""
        target = self.target(images, targets)
        losses = [
            self.distance(self.predict(self.seen(images, context, keys), targets), target)
            for context in contexts
        ]
        return Losses(features=torch.stack(losses).mean())

    def target(self, images: Tensor, targets: Tensor) -> Tensor:
        """Features of the target blocks, int64 [T, B, m]: [T * B, m, D], block by block."""
        features = self.features(images)
        return torch.cat([take(features, block) for block in targets])

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The loss of predicted features."""
        if self.loss == "smooth_l1":
            return F.smooth_l1_loss(predicted.to(target.dtype), target)
        return F.mse_loss(predicted.to(target.dtype), target)

    def seen(self, images: Tensor, context: Tensor, keys: Tensor | None = None) -> Encoded:
        """What the encoder makes of a context, int64 [B, n]."""
        hidden = torch.ones(len(images), self.encoder.grid[0] * self.encoder.grid[1], dtype=torch.bool)
        hidden = hidden.to(context.device).scatter_(1, context, False)
        return self.encoder.encode(images, hidden, fill="drop", keys=keys)

    def predict(self, seen: Encoded, targets: Tensor, noise: Tensor | None = None) -> Tensor:
        """Features of the target blocks out of a context: [T * B, m, D], block by block.

        noise: added to the mask tokens, [T * B, m, width of the predictor].
        """
        m = targets.shape[2]
        tokens = self.mask_tokens(repeated(seen, len(targets)), targets.flatten(0, 1))
        if noise is not None:
            tokens = torch.cat([tokens[:, :-m], tokens[:, -m:] + noise], dim=1)
        return self.predictor(tokens, last=m)

    def after_step(self, step: Step) -> None:
        momentum = linear(self.momentum_start, self.momentum_end, step.progress)
        self.teacher.update(momentum, encoder=self.encoder)


def repeated(encoded: Encoded, times: int) -> Encoded:
    """A batch of visible tokens several times over: all of it, then all of it again."""
    return encoded._replace(
        cls=None if encoded.cls is None else encoded.cls.repeat(times, 1),
        patches=encoded.patches.repeat(times, 1, 1),
        kept=None if encoded.kept is None else encoded.kept.repeat(times, 1),
    )
