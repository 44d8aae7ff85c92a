"""DeepMIM: deep supervision for masked image modeling."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.images import Denormalise
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class DeepMIM(Method):
    """Deep supervision for masked image modelling (Ren et al., 2023, arXiv:2303.08817).

    A masked autoencoder with a decoder on several blocks of the upper half of the encoder, not on the last
    alone, all of which predict the hidden patches. The target is pixels, or a frozen teacher's features.
    """

    card = Card(
        key="deepmim",
        name="DeepMIM",
        paper="DeepMIM: Deep Supervision for Masked Image Modeling",
        authors="Ren, Wei, Albanie, Zhang, Hu",
        year=2023,
        arxiv="2303.08817",
        code="https://github.com/OliverRensu/DeepMIM",
        scheme="reconstruction",
        masking="random",
        target="low level: normalised pixels; high level: teacher features where one is given",
        architecture="ViT encoder on visible patches, transformer decoders on several blocks",
        objective="reconstruction (L2; cosine with a teacher)",
        classes=Classes(
            masking="random",
            target="pixels + frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="OliverRensu/DeepMIM README, ViT-B/16 on ImageNet-1K, 1600 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "Only the variant with CLIP features as target was released, and is what is verified; pixels, "
            "the paper's first target, are used where no teacher is given. CLIP's features are those after "
            "its projection, other teachers' those after their last norm. The paper's hybrid targets are "
            "left out. Four decoders after blocks 6, "
            "8, 10 and 12 of 12, here at the same shares of the depth, fewer where the encoder has not so "
            "many blocks. Only the last is fed through the encoder's norm, as in the code. The decoders' "
            "4 blocks of width 512 keep their proportion to ViT-B."
        ),
    )
    needs = {"teacher": None}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher | None = None,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        levels: Annotated[int, Field(ge=1)] = 4,
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher = cast(nn.Module, teacher)
        self.denormalise = Denormalise(self.card)
        self.masking = RandomMask(mask_ratio)
        self.norm_pix = norm_pix
        self.layers = supervised_layers(backbone.depth, levels)
        features = 3 * backbone.patch_size**2 if teacher is None else teacher.embed_dim
        depth = decoder_depth or max(1, min(4, round(backbone.depth * 4 / 12)))
        pairs = [mae_decoder(backbone, features, decoder_dim, depth, decoder_heads) for _ in self.layers]
        self.mask_tokens = nn.ModuleList(mask_tokens for mask_tokens, _ in pairs)
        self.decoders = nn.ModuleList(decoder for _, decoder in pairs)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, self.features(images), step.keys)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor | None:
        """What the teacher sees in normalised images, [B, N, F]; None without one."""
        if self.teacher is None:
            return None
        with torch.autocast(images.device.type, enabled=False):
            return self.teacher.encode(self.denormalise(images)).patches

    def losses(
        self, images: Tensor, mask: Tensor, features: Tensor | None = None, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given teacher features, [B, N, F]."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", layers=self.layers, keys=keys)
        losses = Losses()
        for layer, inputs, decoder in zip(self.layers, self.mask_tokens, self.decoders, strict=True):
            predicted = decoder(inputs(self._tap(encoded, layer), hidden), last=hidden.shape[1])
            predicted = predicted.to(images.dtype)
            if features is None:
                error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
            else:
                error = 2 - 2 * F.cosine_similarity(predicted, take(features, hidden), dim=-1)
            losses[f"block {self.encoder.depth + 1 + layer}"] = error.mean()
        return losses

    def _tap(self, encoded: Encoded, layer: int) -> Encoded:
        """The tokens of a block, as it left them; of the last through the encoder's norm."""
        if layer == -1:
            return encoded
        cls, patches = encoded.layers[self.layers.index(layer)]
        return encoded._replace(cls=cls, patches=patches)


def supervised_layers(depth: int, levels: int) -> tuple[int, ...]:
    """Blocks with a decoder, counted from the end, lowest first: ``levels`` evenly from half way to the top.

    Fewer where the upper half of the encoder has not so many.
    """
    if levels == 1:
        return (-1,)
    blocks = {round(depth / 2 * (1 + i / (levels - 1))) for i in range(levels)}
    return tuple(block - depth - 1 for block in sorted(blocks))
