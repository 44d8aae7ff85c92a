"""CroCo: self-supervised pre-training for 3D vision tasks by cross-view completion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from method_zoo.parts.cross import CrossDecoder
from method_zoo.parts.decoders import MaskTokens, decoder_size
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

COLOURS = {"flip": False, "color_jitter": 0.4}  # of both views, drawn for each on its own


class CroCo(Method):
    """Cross-view completion (Weinzaepfel et al., 2022, arXiv:2210.10716).

    Nearly all of one view is hidden and completed with the help of a second view of the same scene, which
    the same encoder sees whole: the decoder's blocks attend within the first view, then to the second.
    """

    card = Card(
        key="croco",
        name="CroCo",
        paper="CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View Completion",
        authors="Weinzaepfel, Leroy, Lucas, Brégier, Cabon, Arora, Antsfeld, Chidlovskii, Csurka, Revaud",
        year=2022,
        arxiv="2210.10716",
        code="https://github.com/naver/croco",
        scheme="reconstruction",
        masking="random, on one of two views",
        target="low level: normalised pixels",
        architecture="ViT encoder for both views, decoder with self- and cross-attention",
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
            batch_size=256,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 400,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), **COLOURS),
            source="naver/croco pretrain.py on 4 GPUs, ViT-B/16 on Habitat pairs, 400 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"cls_token": False, "positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The official pairs are renderings and photographs of one scene from two places. A folder of "
            "images has no pairs: here the second view is another crop of the image, of at least "
            "reference_scale of its area, which makes the two overlap (always on a square image); the first "
            "view is cropped as in MAE. The code crops 224 of 256 pixels at random. Its cosine schedule is "
            "laid out for 800 epochs and stopped after 400; here it ends with the run. The decoder's size "
            "keeps MAE's proportion to ViT-B; int(N·ratio) patches are hidden, as in the code."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9,
        norm_pix: bool = True,
        norm_reference: bool = True,
        reference_scale: Annotated[float, Field(gt=0, le=1)] = 0.6,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio, hide_fewer=True)
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.norm_pix = norm_pix
        reference = Augmentation(crop_scale=(reference_scale, 1.0), **COLOURS)
        self.views = (View(augmentation=reference, image_size=backbone.config["image_size"]),)
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        self.decoder = CrossDecoder(
            dim,
            depth,
            heads,
            3 * backbone.patch_size**2,
            mlp_ratio=backbone.config.get("mlp_ratio", 4.0),
            self_attention="before",
            context_norm="shared" if norm_reference else "none",
            separate=True,
        )

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, step.views[1].images, mask, step.keys)

    def losses(self, images: Tensor, reference: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask of the first view, bool [B, N], True = hidden. reference: the second."""
        hidden = where(mask)
        tokens = self.mask_tokens(self.encoder.encode(images, mask, fill="drop", keys=keys), hidden)
        seen = self.mask_tokens(self.encoder.encode(reference, keys=keys))
        predicted = self.decoder(tokens, seen, last=hidden.shape[1])
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(reconstruction=error.mean())
