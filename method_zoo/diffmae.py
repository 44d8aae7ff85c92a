"""DiffMAE: diffusion models as masked autoencoders."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.cross import CrossDecoder
from method_zoo.parts.decoders import decoder_size
from method_zoo.parts.diffusion import NoiseSchedule, TimeEmbedding, diffuse, signal_shares
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from method_zoo.parts.targets import pixels_at
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class DiffMAE(Method):
    """Diffusion model as a masked autoencoder (Wei et al., 2023, arXiv:2304.03283).

    The hidden patches are not left out but covered by Gaussian noise of a random amount. The encoder sees
    the visible patches; a decoder denoises the hidden ones at once, their pixels being the target, by
    cross-attention to the visible ones. Its first block looks at the encoder's last, its last at the
    encoder's first.
    """

    card = Card(
        key="diffmae",
        name="DiffMAE",
        paper="Diffusion Models as Masked Autoencoders",
        authors="Wei, Mangalam, Huang, Li, Fan, Xu, Wang, Xie, Yuille, Feichtenhofer",
        year=2023,
        arxiv="2304.03283",
        scheme="reconstruction",
        masking="random, hidden patches noised",
        target="low level: pixels",
        architecture="ViT encoder on visible patches, cross-attention decoder on noised patches",
        objective="reconstruction (L2)",
        classes=Classes(
            masking="random",
            target="pixels",
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
            source="MAE's recipe over the 1600 epochs of arXiv:2304.03283, ViT-L/16 on ImageNet-1K",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae", "final_norm": False},
        parity="no official code",
        notes=(
            "Written after the paper; no code was published. A decoder block attends to the encoder, then "
            "(decoder_self_attention, the paper's cross-self decoder) within the noised patches; the paper's "
            "joint decoder is left out. Decoder blocks see the encoder's blocks spread evenly from its last "
            "to its first. The time is added to the noised patches as the embedding of DDPM. The noise "
            "covers the patches that are the target: plain pixels, or with norm_pix those normalised as "
            "MAE's. rho is the power of the signal's share at each time, 1 the schedule as published. The "
            "decoder's size keeps MAE's proportion to ViT-B. Sampling images is not part of this zoo."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm_pix: bool = False,
        schedule: NoiseSchedule = "linear",
        timesteps: Annotated[int, Field(ge=1)] = 1000,
        rho: Annotated[float, Field(gt=0)] = 0.8,
        decoder_self_attention: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.norm_pix = norm_pix
        self.register_buffer("shares", signal_shares(schedule, timesteps, rho), persistent=False)
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        # From the last block to the first, evenly.
        self.layers = tuple(-1 - round(i * (backbone.depth - 1) / max(1, depth - 1)) for i in range(depth))
        pixels = 3 * backbone.patch_size**2
        self.embed = nn.Linear(pixels, dim)
        xavier_(self.embed)
        self.time = TimeEmbedding(dim)
        self.register_buffer("positions", sincos_positions(dim, backbone.grid), persistent=False)
        self.decoder = CrossDecoder(
            dim,
            depth,
            heads,
            pixels,
            backbone.embed_dim,
            mlp_ratio=backbone.config.get("mlp_ratio", 4.0),
            self_attention="after" if decoder_self_attention else None,
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        time = (rng.uniform(step.keys, 1, "time").squeeze(1) * len(self.shares)).long()
        n_hidden, n_pixels = self.masking.hidden_cells(self.encoder.grid), self.embed.in_features
        noise = rng.normal(step.keys, n_hidden * n_pixels, "noise").view(-1, n_hidden, n_pixels)
        return self.losses(images, mask, time, noise.to(images.dtype), step.keys)

    def losses(
        self, images: Tensor, mask: Tensor, time: Tensor, noise: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given noise.

        time: number of the step less one, int64 [B]; noise: standard normal, [B, m, p·p·3].
        """
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", layers=self.layers, keys=keys)
        seen = [p if cls is None else torch.cat([cls.unsqueeze(1), p], dim=1) for cls, p in encoded.layers]
        target = pixels_at(images, hidden, self.encoder.patch_size, self.norm_pix)
        noised = diffuse(target, noise, self.shares[time])
        tokens = self.embed(noised) + self.positions[hidden] + self.time(time + 1).unsqueeze(1)
        predicted = self.decoder(tokens, seen)
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())
