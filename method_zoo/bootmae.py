"""BootMAE: bootstrapped masked autoencoders for vision BERT pretraining."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.cross import CrossDecoder
from method_zoo.parts.decoders import MaskTokens, decoder_size
from method_zoo.parts.ema import MovingAverage
from method_zoo.parts.losses import pasted, squared_error
from method_zoo.parts.masking import BlockMask, RandomMask, random_scores, ranks
from method_zoo.parts.patches import patchify, take, where
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import HALF, Augmentation, Card, Classes, Readout, Recipe
from mimbench.watching import note_pixels

Share = Annotated[float, Field(gt=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, le=1)]


class BootMAE(Method):
    """Bootstrapped masked autoencoder (Dong et al., 2022, arXiv:2207.07116).

    Two decoders behind one encoder of the visible patches: one predicts the pixels of the hidden patches,
    the other what the encoder's own moving average sees there. So that the encoder need not carry what
    only one target asks for, each is handed it directly, by cross-attention: the first block's output to
    the pixel decoder, the last block's to the feature decoder.
    """

    card = Card(
        key="bootmae",
        name="BootMAE",
        paper="Bootstrapped Masked Autoencoders for Vision BERT Pretraining",
        authors="Dong, Bao, Zhang, Chen, Zhang, Yuan, Chen, Wen, Yu",
        year=2022,
        arxiv="2207.07116",
        code="https://github.com/LightDXY/BootMAE",
        scheme="both",
        masking="block",
        target="low level: normalised pixels; high level: features of a moving average",
        architecture="ViT encoder on visible patches, two decoders with cross-attention, moving average",
        objective="reconstruction (L2 of pixels and of features)",
        classes=Classes(
            masking="random",
            target="pixels + trained teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 801,
            min_lr=1e-4,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "LightDXY/BootMAE scripts/pretrain/bash_pre_BootMAE_Base_800.sh on 16 GPUs, ViT-B/16 on "
                "ImageNet-1K, 800 epochs"
            ),
        ),
        readout=Readout(token="mean"),
        mean=HALF,
        std=HALF,
        backbone={"positions": "sincos_y_first", "qkv_bias": "query_value", "init": "mocov3"},
        parity="verified",
        notes=(
            "The code's blocks cover 120 of 196 patches; others at random bring the hidden ones to 147, and "
            "of the blocks up to 3 patches are left visible after all (spared), one number for the batch "
            "there, one for each image here. Pixels are normalised by patch and colour channel. Hidden "
            "patches count more the more of their neighbours are hidden (weigh_neighbours). The features' "
            "weight grows over the first quarter of the run and the momentum over its first half, at each "
            "step where the code's change once an epoch; the momentum's durations are the code's at 800 "
            "epochs. The average is of the encoder; the code also averages the decoders, which nothing "
            "reads. The code gives the pixel decoder of width 512 the encoder's 12 heads of 42 channels "
            "each; here its heads divide its width. The authors' linear probe reads the 9th of 12 blocks."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Share = 0.75,
        block_ratio: Share = 120 / 196,
        min_block: Share = 16 / 196,
        max_block: Share = 60 / 196,
        spared: Annotated[float, Field(ge=0, lt=1)] = 3 / 196,
        weigh_neighbours: bool = True,
        feature_weight: Annotated[float, Field(ge=0)] = 1.0,
        feature_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.25,
        low_layer: Annotated[int, Field(le=-1)] | None = None,
        high_layer: Annotated[int, Field(le=-1)] = -1,
        momentum_start: Momentum = 0.999,
        momentum_middle: Momentum = 0.9999,
        momentum_end: Momentum = 0.99999,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] = 2,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self._set_masking(mask_ratio, block_ratio, min_block, max_block, spared)
        self.weigh_neighbours = weigh_neighbours
        self.feature_weight, self.feature_warmup = feature_weight, feature_warmup
        self.momentum = (momentum_start, momentum_middle, momentum_end)
        self.layers = (-backbone.depth if low_layer is None else low_layer, high_layer)
        if min(self.layers) < -backbone.depth:
            raise UserError(
                f"the layers {list(self.layers)} count from the end of a backbone of {backbone.depth} blocks"
            )
        width, patch_size, grid = backbone.embed_dim, backbone.patch_size, backbone.grid
        options = {
            "context_dim": width,
            "mlp_ratio": backbone.config.get("mlp_ratio", 4.0),
            "self_attention": "before",
            "bias": "query_value",
        }
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.pixel_tokens = MaskTokens(width, dim, grid, first="y", visible_positions=False)
        self.pixel_decoder = CrossDecoder(dim, depth, heads, 3 * patch_size**2, **options)
        self.feature_tokens = MaskTokens(width, width, grid, first="y", visible_positions=False)
        heads = backbone.config["num_heads"]
        self.feature_decoder = CrossDecoder(width, depth, heads, width, **options)
        for part in (self.pixel_tokens, self.pixel_decoder, self.feature_tokens, self.feature_decoder):
            xavier_(part, joint=False)
        self.pixel_decoder.head = PatchPixels(dim, patch_size)
        self.teacher = MovingAverage(encoder=self.encoder)

    def _set_masking(
        self, mask_ratio: float, block_ratio: float, min_block: float, max_block: float, spared: float
    ) -> None:
        grid = self.encoder.grid
        n = grid[0] * grid[1]
        self.n_hidden = RandomMask(mask_ratio).hidden_cells(grid)
        self.blocks = BlockMask(
            ratio=block_ratio,
            min_block=max(1, round(min_block * n)),
            max_block=max(1, round(max_block * n)),
            exact=True,
            attempts=1000,
        )
        if self.blocks.n_hidden(grid) > self.n_hidden:
            raise UserError(
                f"block_ratio={block_ratio:g} hides more than mask_ratio={mask_ratio:g}; blocks are part of "
                "what is hidden"
            )
        self.n_spared = min(round(spared * n), n - self.n_hidden)

    def mask(self, keys: Tensor) -> Tensor:
        """Blocks, but for a few of their patches, and other patches at random; bool [B, N]."""
        blocks = self.blocks(keys, self.encoder.grid)
        order = ranks(random_scores(keys, blocks.shape[1], "mask/order") + blocks)  # those in blocks first
        spared = (rng.uniform(keys, 1, "mask/spared") * (self.n_spared + 1)).long()
        return (order >= spared) & (order < spared + self.n_hidden)

    def forward(self, images: Tensor, step: Step) -> Losses:
        ramp = min(1.0, step.progress / self.feature_warmup) if self.feature_warmup else 1.0
        weight = self.feature_weight * ramp
        return self.losses(images, self.mask(step.keys), self.features(images), weight, step.keys)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the moving average sees in the whole image, before its final norm, [B, N, D]."""
        return self.teacher["encoder"].encode(images, layers=(-1,)).layers[0][1].to(images.dtype)

    def losses(
        self, images: Tensor, mask: Tensor, features: Tensor, weight: float, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given features, [B, N, D].

        weight: of the features' loss.
        """
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", layers=self.layers, keys=keys)
        low, high = (p if cls is None else torch.cat([cls.unsqueeze(1), p], 1) for cls, p in encoded.layers)
        pixels = self.pixel_decoder(self.pixel_tokens(encoded, hidden), low, last=hidden.shape[1])
        seen = self.feature_decoder(self.feature_tokens(encoded, hidden), high, last=hidden.shape[1])

        importance = self._importance(mask, hidden, images.dtype)
        target = take(normalised_by_channel(images, self.encoder.patch_size), hidden)
        note_pixels(lambda: self._restored(pixels, images, hidden), true_statistics=True)
        pixel_loss = (importance * squared_error(pixels, target)).mean()
        target = _normed(take(features, hidden))
        feature_loss = (importance * squared_error(_normed(seen.to(target.dtype)), target)).mean()
        return Losses(pixels=pixel_loss, features=weight * feature_loss)

    def _restored(self, pixels: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
        """Predicted pixels with the mean and variance that ``normalised_by_channel`` took away."""
        size = self.encoder.patch_size
        true = take(patchify(images, size, order="channel"), hidden).unflatten(2, (3, -1))
        deviation = (true.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        patches = pixels.to(images.dtype).unflatten(2, (3, -1)) * deviation + true.mean(-1, keepdim=True)
        return pasted(patches.flatten(2), images, hidden, size, order="channel")

    def _importance(self, mask: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """One, and the share of hidden patches among the 3 x 3 around a patch, [B, hidden]."""
        if not self.weigh_neighbours:
            return torch.ones_like(hidden, dtype=dtype)
        grid = mask.to(dtype).unflatten(1, self.encoder.grid).unsqueeze(1)
        around = F.avg_pool2d(grid, 3, stride=1, padding=1)  # beyond the border nothing is hidden
        return 1 + around.flatten(1).gather(1, hidden)

    def after_step(self, step: Step) -> None:
        momentum = float(np.interp(step.progress, (0, 100 / 800, 400 / 800), self.momentum))
        self.teacher.update(momentum, encoder=self.encoder)


class PatchPixels(nn.ConvTranspose2d):
    """A linear map of tokens to pixels that has one bias for each colour channel."""

    def __init__(self, dim: int, patch_size: int):
        super().__init__(dim, 3, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Pixels in the order (C, p, p), [B, n, 3·p·p]. x: [B, n, dim]."""
        return super().forward(x.flatten(0, 1)[..., None, None]).view(*x.shape[:2], -1)


def normalised_by_channel(images: Tensor, patch_size: int, eps: float = 1e-5) -> Tensor:
    """Patches in the order (C, p, p), each colour channel with mean 0 and variance 1: [B, N, 3·p·p].

    BootMAE's target: biased variance, ``eps`` added to it.
    """
    channels = patchify(images, patch_size, order="channel").unflatten(2, (3, -1))
    return F.layer_norm(channels, channels.shape[-1:], eps=eps).flatten(2)


def _normed(features: Tensor) -> Tensor:
    return F.layer_norm(features, features.shape[-1:], eps=1e-6)
