"""CAN: a simple, efficient and scalable contrastive masked autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.contrast import two_view_contrast
from method_zoo.parts.decoders import TransformerDecoder, decoder_size
from method_zoo.parts.heads import mlp_head
from method_zoo.parts.losses import pixel_error, squared_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import joined, where
from method_zoo.parts.targets import pixels_at
from mimbench import rng
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
AUGMENTATION = Augmentation(  # of both views
    crop_scale=(0.08, 1.0),
    interpolation="bilinear",
    flip=True,
    color_jitter=0.8,
    hue=0.2,
    jitter_probability=0.8,
    grayscale=0.2,
    blur=0.5,
)


class NoisyView(NamedTuple):
    """A view of a batch, what is added to it and what of it is hidden."""

    images: Tensor  # [B, 3, H, W], normalised
    level: Tensor  # standard deviation of the noise, [B]
    noise: Tensor  # [B, 3, H, W]
    mask: Tensor  # bool [B, N], True = hidden
    keys: Tensor | None = None  # int64 [B]


class CAN(Method):
    """Contrastive masked autoencoder with noise prediction (Mishra et al., 2022, arXiv:2210.16870).

    Noise is added to two views and half of their patches hidden. From what is left of each, and told how
    strong the noise is, a decoder predicts the hidden patches' clean pixels and the visible ones' noise;
    the means of the encoded patches are contrasted as in SimCLR.
    """

    card = Card(
        key="can",
        name="CAN",
        paper=(
            "A simple, efficient and scalable contrastive masked autoencoder for learning visual "
            "representations"
        ),
        authors="Mishra, Robinson, Chang, Jacobs, Sarna, Maschinot, Krishnan",
        year=2022,
        arxiv="2210.16870",
        scheme="both",
        masking="random, two views",
        target="low level: normalised pixels of hidden patches, noise of visible ones",
        architecture="ViT encoder on visible patches, transformer decoder, MLP head",
        objective="reconstruction and denoising (L2), contrast of two views (InfoNCE)",
        classes=Classes(
            masking="random",
            target="pixels + own features",
            architecture="plain transformer",
            objective="reconstruction + contrastive",
        ),
        recipe=Recipe(
            base_lr=2.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 800,
            augmentation=AUGMENTATION,
            source=(
                "defaults of bwconrad/can, an unofficial implementation, ViT-B/16 on ImageNet-1K; batch and "
                "warm-up are MAE's"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="no official code",
        notes=(
            "Equal to bwconrad/can (MIT), a re-implementation, on its records. That normalises the noise of "
            "each patch as it does pixels (norm_noise=true), which takes its strength out of the target; the "
            "paper's objective has the noise itself. It adds the embedded noise level to visible and mask "
            "tokens before the decoder's projection, or with embed_mask_token=false to projected visible "
            "tokens and a mask token of the decoder's width. The head is 16/3 widths wide and gives a sixth "
            "of a width, 4096 and 128 at ViT-B."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        noise_max: Annotated[float, Field(gt=0)] = 0.05,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        contrast_weight: Weight = 0.03,
        reconstruction_weight: Weight = 0.67,
        denoising_weight: Weight = 0.3,
        norm_pix: bool = True,
        norm_noise: bool = False,
        embed_mask_token: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        head_hidden: Count | None = None,
        head_dim: Count | None = None,
        level_dim: Annotated[int, Field(ge=4)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.views = (View(augmentation=AUGMENTATION, image_size=backbone.config["image_size"]),)
        self.noise_max, self.temperature = noise_max, temperature
        self.contrast_weight, self.reconstruction_weight = contrast_weight, reconstruction_weight
        self.denoising_weight, self.norm_pix, self.norm_noise = denoising_weight, norm_pix, norm_noise
        width = backbone.embed_dim
        hidden, out = head_hidden or round(width * 4096 / 768), head_dim or max(1, width // 6)
        self.projector = mlp_head((width, hidden, hidden, out))
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.tokens = NoiseAwareTokens(width, dim, backbone.grid, level_dim or width, embed_mask_token)
        self.decoder = TransformerDecoder(dim, depth, heads, 3 * backbone.patch_size**2)

    def forward(self, images: Tensor, step: Step) -> Losses:
        own = [rng.branch(step.keys, f"view {i}") for i in range(2)]
        crops = (images, step.views[1].images)
        return self.losses([self.noisy(view, keys) for view, keys in zip(crops, own, strict=True)])

    def noisy(self, images: Tensor, keys: Tensor) -> NoisyView:
        """Draw noise and mask for a view."""
        level = self.noise_max * rng.uniform(keys, 1, "noise level").to(images.dtype)
        noise = rng.normal(keys, images[0].numel(), "noise").to(images.dtype) * level
        mask = self.masking(keys, self.encoder.grid)
        return NoisyView(images, level.squeeze(1), noise.view_as(images), mask, keys)

    def losses(self, views: Sequence[NoisyView]) -> Losses:
        """Losses of two views."""
        encoded = [
            self.encoder.encode(view.images + view.noise, view.mask, fill="drop", keys=view.keys)
            for view in views
        ]
        first, second = (
            self.projector(e.patches.mean(1)).to(view.images.dtype)
            for e, view in zip(encoded, views, strict=True)
        )
        errors = [self._errors(view, e) for view, e in zip(views, encoded, strict=True)]
        reconstruction, denoising = (torch.stack(terms).mean() for terms in zip(*errors, strict=True))
        return Losses(
            contrast=self.contrast_weight * two_view_contrast(first, second, self.temperature),
            reconstruction=self.reconstruction_weight * reconstruction,
            denoising=self.denoising_weight * denoising,
        )

    def _errors(self, view: NoisyView, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Mean squared error of the hidden patches' pixels and of the visible ones' noise."""
        hidden, visible = where(view.mask), where(~view.mask)
        tokens = self.tokens(encoded, hidden, view.level)
        predicted = self.decoder(tokens, last=view.mask.shape[1])
        noise, pixels = predicted.split([visible.shape[1], hidden.shape[1]], dim=1)
        patch_size = self.encoder.patch_size
        return (
            pixel_error(pixels, view.images, hidden, patch_size, self.norm_pix).mean(),
            squared_error(noise, pixels_at(view.noise, visible, patch_size, self.norm_noise)).mean(),
        )


class NoiseAwareTokens(nn.Module):
    """Turns visible tokens into a decoder's sequence that knows how strong the noise is.

    level_dim: width of the noise level's embedding. embed_mask_token: whether the mask token and the
    embedded noise level have the encoder's width and are projected like the visible tokens.
    """

    def __init__(
        self, encoder_dim: int, dim: int, grid: tuple[int, int], level_dim: int, embed_mask_token: bool
    ):
        super().__init__()
        self.embed_mask_token, self.level_dim = embed_mask_token, level_dim
        width = encoder_dim if embed_mask_token else dim
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.level = mlp_head((level_dim, level_dim, width), norm="none")
        self.register_buffer("positions", sincos_positions(dim, grid), persistent=False)
        xavier_(self.embed)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, hidden: Tensor, level: Tensor) -> Tensor:
        """[B, T, dim]: class token, visible patches, hidden patches. hidden: [B, m]; level: [B]."""
        told = self.level(sinusoids(level, self.level_dim)).unsqueeze(1)
        visible, masked = encoded.patches, self.mask_token.expand(*hidden.shape, -1)
        if self.embed_mask_token:
            patches = self.embed(torch.cat([visible, masked], dim=1) + told)
        else:
            patches = torch.cat([self.embed(visible), masked], dim=1) + told
        places = self.positions[torch.cat([encoded.kept, hidden], dim=1)]
        return joined(None if encoded.cls is None else self.embed(encoded.cls), patches + places)


def sinusoids(values: Tensor, dim: int) -> Tensor:
    """Sines, then cosines of values [B] times frequencies from 1 down to 1e-4: [B, dim].

    The timestep embedding of diffusion models (Ho et al., 2020, arXiv:2006.11239).
    """
    steps = torch.arange(dim // 2, dtype=values.dtype, device=values.device)
    angles = values.unsqueeze(1) * torch.exp(-math.log(1e4) / (dim // 2 - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
