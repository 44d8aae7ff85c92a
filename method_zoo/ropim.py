"""ROPIM: pre-training with random orthogonal projection image modeling."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.patches import patchify, unpatchify
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe
from mimbench.watching import note_pixels


class ROPIM(Method):
    """Random orthogonal projection image modeling (Haghighat et al., 2024, arXiv:2310.18737).

    Embedded patches are mixed by a random projection onto a subspace of few dimensions, a mask that hides
    a part of each; a linear layer on the encoder's output predicts pixels, and the loss looks at what is
    left of its error in the complement of the subspace.
    """

    card = Card(
        key="ropim",
        name="ROPIM",
        paper="Pre-training with Random Orthogonal Projection Image Modeling",
        authors="Haghighat, Moghadam, Mohamed, Koniusz",
        year=2024,
        arxiv="2310.18737",
        code="https://github.com/csiro-robotics/ROPIM",
        scheme="reconstruction",
        masking="random projection of the tokens (count sketch)",
        target="low level: pixels",
        architecture="ViT encoder on projected patches, linear head",
        objective="reconstruction (L1 in the complement of the projection)",
        classes=Classes(
            masking="random",
            target="pixels",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_512",
            batch_size=1024,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=5 / 300,
            warmup_start_lr=2 * 5e-7,
            min_lr=2 * 5e-6,
            clip_grad=5.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.67, 1.0), interpolation="bilinear", flip=True),
            source=(
                "csiro-robotics/ROPIM ropim_pretrain__vit_base_cos_300ep.yaml and config.py, whose 128 "
                "images a GPU are taken for the 8 GPUs of the paper"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "none",
            "rel_pos": "shared",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "init": "beit",
        },
        parity="verified",
        notes=(
            "The sketch S puts each patch, with a random sign, into one of ceil(ratio · N) bins, which are "
            "filled equally; patches are mixed by ratio · S Sᵀ, as in the code. With the published ratio, "
            "0.14 of 196 patches, that is close to the paper's orthogonal projection, whose factor is one "
            "over the patches in a bin. The code has two ratios to draw from, both 0.14 in its last version. "
            "The mean is over all numbers of the residual, as in the code, not over the complement's "
            "dimensions."
        ),
    )

    def __init__(self, backbone: Backbone, *, sketch_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.14):
        super().__init__()
        self.encoder = backbone
        self.ratio = sketch_ratio
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.bins = math.ceil(n_patches * sketch_ratio)
        if self.bins >= n_patches:
            raise UserError(
                f"a sketch of ratio {sketch_ratio:g} has as many dimensions as the {n_patches} patches and "
                "hides nothing; choose a smaller ratio or patch size"
            )
        self.head = nn.Linear(backbone.embed_dim, 3 * backbone.patch_size**2)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.projection(step.keys), step.keys)

    def projection(self, keys: Tensor) -> Tensor:
        """ratio · S Sᵀ of one random sketch S an image, float32 [B, N, N], symmetric."""
        n = self.encoder.grid[0] * self.encoder.grid[1]
        rounds = math.ceil(n / self.bins)  # of giving one patch to each bin, in random order
        order = rng.uniform(keys, rounds * self.bins, "bins").view(-1, rounds, self.bins).argsort(-1)
        bins = F.one_hot(order.flatten(1)[:, :n], self.bins)
        # Half of the signs are positive; of an odd number one more is.
        positive = rng.uniform(keys, n, "signs").argsort(-1).argsort(-1) < (n + 1) // 2
        sketch = torch.where(positive.unsqueeze(-1), bins, -bins).float()
        return self.ratio * torch.einsum("bik,bjk->bij", sketch, sketch)

    def losses(self, images: Tensor, projection: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under given projections, [B, N, N]."""

        def project(tokens: Tensor) -> Tensor:
            return projection.to(tokens.dtype).transpose(1, 2) @ tokens

        encoded = self.encoder.encode(images, edits={0: project}, keys=keys)
        predicted = self.head(encoded.patches).to(images.dtype)
        note_pixels(lambda: unpatchify(predicted, self.encoder.grid, order="channel"))
        error = patchify(images, self.encoder.patch_size, order="channel") - predicted
        with torch.autocast(images.device.type, enabled=False):
            return Losses(complement=(error - project(error)).abs().mean())
