"""Sup-MIM: improve supervised representation learning with masked image modeling."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.images import Denormalise
from method_zoo.parts.labels import labels_of
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Tokenizer
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class SupMIM(Method):
    """Supervised training with masked image modelling beside it (Chen et al., 2023, arXiv:2312.00950).

    A classifier is trained with labels on the whole image. The same encoder also sees a masked one, out
    of which a shallow decoder tells the tokens that a tokenizer finds at the hidden places.
    """

    card = Card(
        key="sup_mim",
        name="Sup-MIM",
        paper="Improve Supervised Representation Learning with Masked Image Modeling",
        authors="Chen, Salz, Chang, Sohn, Krishnan, Seyedhosseini",
        year=2023,
        arxiv="2312.00950",
        scheme="reconstruction",
        masking="random",
        target="labels; low level: discrete tokens",
        architecture="ViT encoder on all and on visible patches, transformer decoder, linear classifier",
        objective="classification (cross-entropy of the label and over the vocabulary)",
        classes=Classes(
            masking="random",
            target="tokens + labels",
            architecture="plain transformer",
            objective="classification",
        ),
        external="labels",
        recipe=Recipe(
            base_lr=1e-3,
            lr_rule="absolute",
            batch_size=1024,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            warmup=10_000 / 111_500,
            clip_grad=1.0,
            augmentation=Augmentation(crop_scale=(0.05, 1.0), interpolation="bilinear", flip=True),
            source=(
                "big_vision vit_s16_i1k.py (arXiv:2205.01580), the recipe of the supervised row, since the "
                "paper adds to a supervised recipe and published no code"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="no official code",
        notes=(
            "No code was published; the numbers that could not be found in print are ours: a mask ratio of "
            "0.75, equal weights, label smoothing as in the supervised row. Hidden patches are left out of "
            "the encoder and come back as mask tokens in a decoder of two blocks. The label is told from the "
            "whole image in a pass of its own; classify=masked tells it from the visible patches in the "
            "one pass, at half the cost. Classification reads the mean of the tokens. The paper's tokenizer "
            "is a VQGAN; here one is trained on the same data and its cost counted unless weights are given."
        ),
    )
    needs = {"tokenizer": "vqvae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        tokenizer: Tokenizer,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        classify: Literal["whole", "masked"] = "whole",
        token_weight: Annotated[float, Field(ge=0)] = 1.0,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] = 2,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.tokenizer = Frozen(tokenizer=cast(nn.Module, tokenizer))
        self.denormalise = Denormalise(self.card)
        self.masking = RandomMask(mask_ratio)
        self.classify, self.token_weight, self.label_smoothing = classify, token_weight, label_smoothing
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, tokenizer.vocabulary, decoder_dim, decoder_depth, decoder_heads
        )
        self.classifier = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, self.token_ids(images), labels_of(step, self.card), step.keys)

    @torch.no_grad()
    def token_ids(self, images: Tensor) -> Tensor:
        """Target tokens of normalised images, int64 [B, N]."""
        # Which code is nearest must not depend on the precision the encoder trains in.
        with torch.autocast(images.device.type, enabled=False):
            return self.tokenizer["tokenizer"].ids(self.denormalise(images), self.encoder.grid).flatten(1)

    def losses(
        self, images: Tensor, mask: Tensor, ids: Tensor, labels: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, tokens, int64 [B, N], and classes, [B]."""
        hidden = where(mask)
        visible = self.encoder.encode(images, mask, fill="drop", keys=keys)
        tokens = self.decoder(self.mask_tokens(visible, hidden), last=hidden.shape[1]).to(images.dtype)
        if self.classify == "whole":
            keys = None if keys is None else rng.branch(keys, "sup_mim")
            classified = self.encoder.encode(images, keys=keys)
        else:
            classified = visible
        logits = self.classifier(classified.patches.mean(1)).to(images.dtype)
        told = take(ids.unsqueeze(-1), hidden).flatten()
        return Losses(
            labels=F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing),
            tokens=self.token_weight * F.cross_entropy(tokens.flatten(0, 1), told),
        )
