"""VQ-VAE: a discrete tokenizer, trained on the same images as the method that needs one."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from method_zoo.parts.images import resize_to
from method_zoo.parts.tokenizers.vq import Codebook, conv_decoder, conv_encoder
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import HALF, Augmentation, Card, Classes, Recipe


class VQVAE(Method):
    """VQ-VAE (van den Oord et al., 2017, arXiv:1711.00937).

    A convolutional encoder gives one vector a patch, the codebook replaces each by its nearest code, and
    a decoder paints the image from the codes alone. Which code a patch got is its token.

    Of the backbone only the patch size is read.
    """

    card = Card(
        key="vqvae",
        name="VQ-VAE",
        paper="Neural Discrete Representation Learning",
        authors="van den Oord, Vinyals, Kavukcuoglu",
        year=2017,
        arxiv="1711.00937",
        code="https://github.com/google-deepmind/sonnet/blob/v2/examples/vqvae_example.ipynb",
        role="tokenizer",
        scheme="reconstruction",
        masking="none",
        target="low level: pixels",
        architecture="convolutional encoder and decoder around a codebook",
        objective="reconstruction (L2) and commitment",
        classes=Classes(
            masking="none",
            target="pixels",
            architecture="convolutional",
            objective="reconstruction + other",
        ),
        recipe=Recipe(
            base_lr=3e-4,
            lr_rule="absolute",
            batch_size=32,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            warmup=0.05,
            clip_grad=1.0,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "rate, batch and betas of DeepMind's Sonnet example (google-deepmind/sonnet, "
                "vqvae_example.ipynb, CIFAR-10), which keeps the rate constant; warm-up, cosine and "
                "clipping are mimbench's"
            ),
        ),
        mean=HALF,
        std=HALF,
        parity="baseline",
        notes=(
            "Codes follow moving averages (the paper's appendix A.1). Beyond the paper, codes that stay "
            "unused move onto badly served vectors, and the average starts young, so that a run of a few "
            "hundred steps uses the codebook. One token a patch: the encoder's stride is the patch size, "
            "which in the paper is 4. vocabulary is the paper's 512; BEiT's tokenizer has 8192."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        vocabulary: Annotated[int, Field(ge=2)] = 512,
        dim: Annotated[int, Field(ge=1)] = 32,
        width: Annotated[int, Field(ge=2)] = 64,
        blocks: Annotated[int, Field(ge=0)] = 2,
        commitment: Annotated[float, Field(gt=0)] = 0.25,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    ):
        super().__init__()
        self.patch_size = int(backbone.config["image_size"]) // backbone.grid[0]
        self.vocabulary, self.commitment = vocabulary, commitment
        self.config: dict[str, Any] = {
            "patch_size": self.patch_size,
            "vocabulary": vocabulary,
            "dim": dim,
            "width": width,
            "blocks": blocks,
            "commitment": commitment,
            "decay": decay,
        }
        self.encoder = conv_encoder(self.patch_size, width, blocks, dim)
        self.codebook = Codebook(vocabulary, dim, decay)
        self.decoder = conv_decoder(self.patch_size, width, blocks, dim)
        self.register_buffer("mean", torch.tensor(self.card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.card.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VQVAE:
        """The tokenizer that ``config`` describes, freshly initialised; for loading weights."""
        settings = dict(config)
        one_patch = SimpleNamespace(config={"image_size": settings.pop("patch_size")}, grid=(1, 1))
        return cls(one_patch, **settings)

    def forward(self, images: Tensor, step: Step) -> Losses:
        vectors = self.encoder(images).permute(0, 2, 3, 1)  # [B, H, W, D]
        scores = rng.uniform(step.keys, vectors.shape[1] * vectors.shape[2], "vqvae/idle codes")
        found = self.codebook(vectors.flatten(0, 2), scores.flatten())
        painted = self.decoder(found.codes.view(vectors.shape).permute(0, 3, 1, 2))
        return Losses(
            reconstruction=F.mse_loss(painted.to(images.dtype), images),
            commitment=self.commitment * found.commitment,
        )

    def after_step(self, step: Step) -> None:
        self.codebook.update()

    def description(self) -> dict[str, Any]:
        """Perplexity of the codes over the last steps: how many are in use, weighted by how often."""
        return {"perplexity": self.codebook.perplexity()}

    @torch.no_grad()
    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token ids, int64 [B, H, W] on ``grid``. images: float [B, 3, S, S] in [0, 1], resized to fit."""
        with torch.autocast(images.device.type, enabled=False):
            images = resize_to(images.float(), grid, self.patch_size)
            vectors = self.encoder((images - self.mean) / self.std).permute(0, 2, 3, 1)
            return self.codebook.nearest(vectors.flatten(0, 2)).view(vectors.shape[:3])
