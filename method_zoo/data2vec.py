"""data2vec: a general framework for self-supervised learning in speech, vision and language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.backbones.vit import ViT
from method_zoo.parts.ema import MovingAverage, linear
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.targets import layer_average
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Momentum = Annotated[float, Field(ge=0, le=1)]


class Data2Vec(Method):
    """data2vec for images (Baevski et al., 2022, arXiv:2202.03555).

    BEiT's encoder, in whose input blocks of patches became a mask token, predicts at the hidden places
    what its own moving average makes of the whole image: the mean over the upper half of its blocks, each
    normalised.
    """

    card = Card(
        key="data2vec",
        name="data2vec",
        paper="data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language",
        authors="Baevski, Hsu, Xu, Babu, Gu, Auli",
        year=2022,
        arxiv="2202.03555",
        code="https://github.com/facebookresearch/data2vec_vision",
        scheme="contrastive",
        masking="block",
        target="high level: features of a moving average, mean over blocks",
        architecture="ViT encoder with mask tokens, linear head, moving average",
        objective="regression of features (smooth L1)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=2e-3,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=10 / 800,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.25,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True, color_jitter=0.4
            ),
            source="facebookresearch/data2vec_vision beit/README.md, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "none",
            "rel_pos": "shared",
            "layer_scale": 1e-4,
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="verified",
        notes=(
            "120 of 196 patches are hidden, which mask_ratio and min_block keep as shares on other grids; "
            "block masks may hide a few patches fewer, as the code's do. The published commands ask for a "
            "momentum that grows from 0.999 but give its growth 0 steps, so that it is 0.9998 throughout "
            "(0.9999 in the second half of the 1,600 epochs of ViT-L), as the paper says; momentum_start "
            "and momentum_end make it grow over the run. Averaged are the upper 6 of 12 blocks, which is "
            "half (average_blocks); the published ViT-L averages 6 of 24. The code's dropout on the "
            "attention, 0.05, is left out. Large models are published with a layer scale of 1e-5. "
            "Evaluated is the student, as in the published fine-tuning."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 120 / 196,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        average_blocks: Annotated[int, Field(ge=1)] | None = None,
        feature: Literal["block", "mlp"] = "block",
        block_norm: Literal["layer", "instance", "none"] = "layer",
        norm_average: bool = True,
        loss: Literal["smooth_l1", "l2"] = "smooth_l1",
        beta: Annotated[float, Field(gt=0)] = 2.0,
        momentum_start: Momentum = 0.9998,
        momentum_end: Momentum = 0.9998,
    ):
        super().__init__()
        self.encoder = backbone
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, round(min_block * n_patches)))
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.average_blocks = average_blocks or max(1, backbone.depth // 2)
        if self.average_blocks > backbone.depth:
            raise UserError(f"average_blocks={average_blocks} asks for more than the {backbone.depth} blocks")
        if feature == "mlp" and not isinstance(backbone, ViT):
            raise UserError("feature='mlp' takes a ViT: only its blocks add an MLP's output to their input")
        self.feature, self.block_norm, self.norm_average = feature, block_norm, norm_average
        self.loss, self.beta = loss, beta
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        self.head = nn.Linear(backbone.embed_dim, backbone.embed_dim)
        truncated_normal_(self.head)
        self.teacher = MovingAverage(encoder=self.encoder)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, mask, self.target(images), step.keys)

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted at each patch, [B, N, D]."""
        encoder = self.teacher["encoder"]
        last = range(-self.average_blocks, 0)
        if self.feature == "block":
            features = [patches for _, patches in encoder.encode(images, layers=last).layers]
        else:
            blocks = cast(ViT, encoder).blocks
            with recorded(blocks[i].ls2 for i in last) as branches:
                encoder.encode(images)
            features = [branch[:, encoder.prefix :] for branch in branches]
        features = [feature.to(images.dtype) for feature in features]
        return layer_average(features, self.block_norm, self.norm_average)

    def losses(self, images: Tensor, mask: Tensor, target: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given targets, [B, N, D]."""
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        predicted = self.head(encoded.patches[mask]).to(images.dtype)
        if self.loss == "l2":
            return Losses(features=F.mse_loss(predicted, target[mask]))
        return Losses(features=F.smooth_l1_loss(predicted, target[mask], beta=self.beta))

    def after_step(self, step: Step) -> None:
        momentum = linear(self.momentum_start, self.momentum_end, step.progress)
        self.teacher.update(momentum, encoder=self.encoder)


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules put out while the context is open, in the order of their calls."""
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, __, output: outputs.append(output)) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
