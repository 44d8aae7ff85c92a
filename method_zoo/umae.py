"""U-MAE: masked autoencoders with a uniformity term."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.parts.collective import gathered
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.losses import pixel_error, uniformity
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class UMAE(Method):
    """Uniformity-enhanced masked autoencoder (Zhang et al., 2022, arXiv:2210.08344).

    Reconstruction aligns the views that masks make of an image, but nothing keeps images apart, so that
    features fall into few dimensions. MAE's loss therefore gets a term that spreads the images' features:
    the mean squared cosine between any two of a batch.
    """

    card = Card(
        key="umae",
        name="U-MAE",
        paper="How Mask Matters: Towards Theoretical Understandings of Masked Autoencoders",
        authors="Zhang, Wang, Wang",
        year=2022,
        arxiv="2210.08344",
        code="https://github.com/zhangq327/U-MAE",
        scheme="both",
        masking="random",
        target="low level: normalised pixels",
        architecture="ViT encoder on visible patches, transformer decoder",
        objective="reconstruction (L2) and uniformity of image features",
        classes=Classes(
            masking="random",
            target="pixels",
            architecture="plain transformer",
            objective="reconstruction + other",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=1024,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=20 / 200,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source=(
                "zhangq327/U-MAE pretrain.sh and README, ViT-B/16 on ImageNet-1K, 200 epochs; 8 GPUs x 128"
            ),
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The feature is the class token, which the code sends through the encoder's last norm twice; "
            "pool=mean is the code's global_pool: the mean of visible tokens with its own norm. Pairs of "
            "an image with itself are part of the mean, as in the code. The linear classifier that the "
            "code trains beside it on detached features is left out. Over several processes the code "
            "drops what other processes' losses say of a feature; here they compute what one would. "
            "pretrain.sh says 40 epochs of warm-up, the README 20, which is taken. The decoder keeps its "
            "published proportion to ViT-B, as in MAE."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm_pix: bool = True,
        uniformity_weight: Annotated[float, Field(ge=0)] = 0.01,
        pool: Literal["cls", "mean"] = "cls",
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.norm_pix, self.uniformity_weight = norm_pix, uniformity_weight
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        self.pool_norm = LayerNorm(backbone.embed_dim) if pool == "mean" else None

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        features = gathered(self.pooled(encoded).to(images.dtype))
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(
            reconstruction=error.mean(),
            uniformity=self.uniformity_weight * uniformity(features),
        )

    def pooled(self, encoded: Encoded) -> Tensor:
        """What is spread out: one vector an image, [B, D]."""
        if self.pool_norm is not None:
            return self.pool_norm(encoded.patches.mean(1))
        return self.encoder.final_norm(encoded.cls)
