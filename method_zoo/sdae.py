"""SdAE: self-distillated masked autoencoder."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.ema import MovingAverage, cosine
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take
from method_zoo.parts.targets import normalised
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Momentum = Annotated[float, Field(ge=0, le=1)]


class SdAE(Method):
    """Self-distillated masked autoencoder (Chen et al., 2022, arXiv:2208.00449).

    The student's decoder predicts, at the hidden patches, the features that a moving average of the
    encoder gives them. That teacher sees nothing else: the hidden patches, in three folds, each by itself,
    so that it sees no more than the student does.
    """

    card = Card(
        key="sdae",
        name="SdAE",
        paper="SdAE: Self-distillated Masked Autoencoder",
        authors="Chen, Liu, Jiang, Zhang, Dai, Xiong, Tian",
        year=2022,
        arxiv="2208.00449",
        code="https://github.com/AbrahamYabo/SdAE",
        scheme="contrastive",
        masking="random, hidden patches in folds",
        target="high level: normalised features of a moving average",
        architecture="ViT encoder on visible patches, transformer decoder, moving average",
        objective="cosine similarity of features",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=2.666e-4,
            lr_rule="per_256",
            batch_size=768,
            betas=(0.9, 0.95),
            weight_decay=0.04,
            warmup=60 / 300,
            drop_path=0.25,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="AbrahamYabo/SdAE main_pretrain.py, ViT-B/16 on ImageNet-1K, 300 epochs, 8 GPUs x 96",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "With the published settings the code's cosine similarity runs over the patches of a fold, "
            "channel by channel, because torch's default dimension meets a tensor of three dimensions; the "
            "paper's runs over the channels of a patch, as the code's does without folds "
            "(cosine_over=channels). The code averages the teacher once an epoch, 300 times in all; here "
            "as often, at equal shares of the run (updates). The code's teacher starts from its own random "
            "weights unless given others, here from the student's. Its positions stay fixed. If the hidden "
            "patches do not divide into the folds, the rest is not predicted, as in the code. folds=0 "
            "shows the teacher the whole image. The decoder of 512 x 2 keeps its published proportion to "
            "ViT-B."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        folds: Annotated[int, Field(ge=0)] = 3,
        cosine_over: Literal["patches", "channels"] = "patches",
        momentum_start: Momentum = 0.96,
        momentum_end: Momentum = 0.99,
        updates: Annotated[int, Field(ge=1)] = 300,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        n_hidden = self.masking.hidden_cells(backbone.grid)
        if folds > n_hidden:
            raise UserError(f"{n_hidden} hidden patches do not make {folds} folds; choose fewer folds")
        self.folds, self.cosine_over = folds, cosine_over
        self.momentum_start, self.momentum_end, self.updates = momentum_start, momentum_end, updates
        dim, depth, heads = decoder_size(
            backbone, decoder_dim, decoder_depth, decoder_heads, published=(512, 2)
        )
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        self.decoder = TransformerDecoder(dim, depth, heads, backbone.embed_dim)
        self.teacher = MovingAverage(encoder=self.encoder)
        self.register_buffer("updated", torch.tensor(0))  # how often the teacher was averaged

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        # Hidden patches come first, in random order.
        order = (mask + rng.uniform(step.keys, mask.shape[1], "mask/folds")).argsort(
            dim=1, descending=True, stable=True
        )
        return self.losses(images, mask, order[:, : int(mask[0].sum())], step.keys)

    @torch.no_grad()
    def features(self, images: Tensor, folds: Tensor | None) -> Tensor:
        """The teacher's features, normalised by patch, [B, N, D]; zero for patches it was not shown.

        folds: int64 [B, F, m], which patches it sees at a time; None shows it the whole image.
        """
        teacher = self.teacher["encoder"]
        if folds is None:
            return normalised(teacher.encode(images).patches.to(images.dtype))
        n = self.encoder.grid[0] * self.encoder.grid[1]
        features = images.new_zeros(len(images), n, self.encoder.embed_dim)
        for fold in folds.unbind(1):
            unseen = torch.ones(len(images), n, dtype=torch.bool, device=fold.device).scatter_(1, fold, False)
            encoded = teacher.encode(images, unseen, fill="drop")
            place = encoded.kept.unsqueeze(-1).expand_as(encoded.patches)
            features.scatter_(1, place, normalised(encoded.patches.to(images.dtype)))
        return features

    def losses(self, images: Tensor, mask: Tensor, hidden: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, whose hidden patches ``hidden`` lists.

        hidden: int64 [B, n]; the first share of them is the first fold, and so on.
        """
        groups = max(self.folds, 1)
        size = hidden.shape[1] // groups
        folds = hidden[:, : groups * size].unflatten(1, (groups, size))
        features = self.features(images, folds if self.folds else None)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1]).to(images.dtype)
        predicted, target = (
            x[:, : groups * size].unflatten(1, (groups, size)) for x in (predicted, take(features, hidden))
        )
        similarity = F.cosine_similarity(target, predicted, dim=2 if self.cosine_over == "patches" else 3)
        return Losses(features=1 - similarity.mean())

    def after_step(self, step: Step) -> None:
        due = int(step.progress * self.updates)
        for update in range(int(self.updated), due):
            momentum = cosine(self.momentum_start, self.momentum_end, update / self.updates)
            self.teacher.update(momentum, encoder=self.encoder)
        self.updated.fill_(due)
