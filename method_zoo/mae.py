"""MAE: masked autoencoders are scalable vision learners."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import BlockMask, GridMask, RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class MAE(Method):
    """Masked autoencoder (He et al., 2022, arXiv:2111.06377).

    The encoder sees the visible patches only; a narrow decoder, fed with mask tokens at the hidden
    places, predicts their pixels, each patch normalised by its own mean and variance.
    """

    card = Card(
        key="mae",
        name="MAE",
        paper="Masked Autoencoders Are Scalable Vision Learners",
        authors="He, Chen, Xie, Li, Dollár, Girshick",
        year=2022,
        arxiv="2111.06377",
        code="https://github.com/facebookresearch/mae",
        scheme="reconstruction",
        masking="random",
        target="low level: normalised pixels",
        architecture="ViT encoder on visible patches, transformer decoder",
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
            warmup=40 / 800,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="facebookresearch/mae PRETRAIN.md, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The decoder keeps its published proportion to ViT-B (2/3 of the width and of the depth, 512 x 8 "
            "at most), so that it stays light beside a small encoder; decoder_dim, decoder_depth and "
            "decoder_heads set it. It is asked for the hidden patches only, in the order visible then "
            "hidden, which gives the same loss as the official un-shuffled sequence. int(N(1 - ratio)) "
            "patches stay visible, as in the code. masking=block and masking=grid are the paper's other two "
            "(table 1f): BEiT's blocks, and one visible patch in each 2x2, at random as UM-MAE draws it."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        masking: Literal["random", "block", "grid"] = "random",
        norm_pix: bool = True,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = self._sampler(masking, mask_ratio, backbone.grid)
        self.norm_pix = norm_pix
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )

    @staticmethod
    def _sampler(masking: str, ratio: float, grid: tuple[int, int]) -> RandomMask | BlockMask | GridMask:
        """The masks that are asked for; UserError now where they do not go with the grid."""
        if masking == "block":
            blocks = BlockMask(ratio, min_block=max(1, round(16 / 196 * grid[0] * grid[1])), exact=True)
            blocks.n_hidden(grid)
            return blocks
        if masking == "grid" and ratio != 0.75:
            raise UserError(f"a grid mask hides 0.75 of the patches, not {ratio:g}; leave mask_ratio out")
        sampler = GridMask() if masking == "grid" else RandomMask(ratio)
        sampler.hidden_cells(grid)
        return sampler

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        predicted = self.decoder(self.mask_tokens(encoded, hidden), last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())
