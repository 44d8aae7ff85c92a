"""LUT: learning with unmasked tokens drives stronger vision learners."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.parts.decoders import mae_decoder
from method_zoo.parts.ema import MovingAverage, cosine
from method_zoo.parts.heads import Activation, Norm, mlp_head
from method_zoo.parts.losses import pixel_error
from method_zoo.parts.masking import RandomMask, mask_from_scores, random_scores
from method_zoo.parts.patches import where
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Count = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=0)]
CROP = Augmentation(crop="square", interpolation="bicubic", flip=True)  # of both views


class LUT(Method):
    """Learning with unmasked tokens (Kim et al., 2024, arXiv:2310.13593).

    A masked autoencoder whose visible tokens learn the context of the whole image too: their mean, through
    a projector and a predictor, is to agree with what a moving average makes of another view, unmasked.
    Both views are encoded; the patches one keeps are hidden in the other.
    """

    card = Card(
        key="lut",
        name="LUT",
        paper="Learning with Unmasked Tokens Drives Stronger Vision Learners",
        authors="Kim, Chun, Heo, Han",
        year=2024,
        arxiv="2310.13593",
        code="https://github.com/naver-ai/lut",
        scheme="both",
        masking="random, disjoint in two views",
        target="low level: normalised pixels; high level: features of a moving average",
        architecture="ViT encoder on visible patches, transformer decoder, MLP heads, moving average",
        objective="reconstruction (L2) and agreement of views (cosine)",
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
            warmup=40 / 1600,
            augmentation=CROP,
            source="naver-ai/lut docs/PRETRAIN.md and main_lut.py, ViT-B/16 on ImageNet-1K, 1600 epochs",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The heads have batch norms, as the documented command and the paper; the code's default is none "
            "(head_norm='none'). The weight of 0.25 is the documented one, the code's default 0.1. As "
            "released the code lacks a file and reads a weight that its parser does not know. The average is "
            "in eval mode: its batch norms use averages over past batches, averaged in their turn. Only the "
            "first view is reconstructed. The code scales the learning rate by the root of the batch, which "
            "is the same at 4096, and pads its square crops by 4 pixels. Its second view is either grey, "
            "solarised or blurred, here each with a probability of a third. The heads are 16/3 widths wide, "
            "4096 at ViT-B."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        norm_pix: bool = True,
        context_weight: Annotated[float, Field(ge=0)] = 0.25,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.996,
        head_depth: Depth = 2,
        predictor_depth: Depth = 2,
        head_hidden: Count | None = None,
        head_norm: Norm = "batch",
        head_activation: Activation = "relu",
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.views = (_view(backbone.config["image_size"]),)
        self.n_patches = backbone.grid[0] * backbone.grid[1]
        self.n_visible = self.n_patches - RandomMask(mask_ratio).hidden_cells(backbone.grid)
        if 2 * self.n_visible > self.n_patches:
            raise UserError(
                f"a mask_ratio of {mask_ratio:g} shows {self.n_visible} of {self.n_patches} patches, too "
                "many for two views to share none; choose 0.5 or more"
            )
        self.norm_pix, self.context_weight, self.momentum = norm_pix, context_weight, momentum
        self.mask_tokens, self.decoder = mae_decoder(
            backbone, 3 * backbone.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        hidden = head_hidden or round(backbone.embed_dim * 4096 / 768)

        def head(layers: int) -> nn.Module:
            return _head(backbone.embed_dim, hidden, layers, head_norm, head_activation)

        self.projector, self.predictor = head(head_depth), head(predictor_depth)
        self.teacher = MovingAverage(encoder=self.encoder, projector=self.projector)

    def forward(self, images: Tensor, step: Step) -> Losses:
        masks = self.masks(random_scores(step.keys, self.n_patches))
        return self.losses(images, step.views[1].images, masks, step.keys)

    def masks(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """A mask for each view, bool [B, N], True = hidden; no patch is visible in both.

        scores: [B, N], random; the first view keeps the patches of the smallest, the second of the next.
        """
        first = mask_from_scores(scores, self.n_patches - self.n_visible)
        in_both = mask_from_scores(scores, self.n_patches - 2 * self.n_visible)
        return first, ~first | in_both

    def losses(
        self, images: Tensor, other: Tensor, masks: tuple[Tensor, Tensor], keys: Tensor | None = None
    ) -> Losses:
        """Losses under given masks, bool [B, N], True = hidden. other: the second view of the images."""
        hidden = where(masks[0])
        first, second = (
            self.encoder.encode(view, mask, fill="drop", keys=keys)
            for view, mask in zip((images, other), masks, strict=True)
        )
        predicted = self.decoder(self.mask_tokens(first, hidden), last=hidden.shape[1])
        queries = [self.predictor(self.projector(view.patches.mean(1))) for view in (first, second)]
        context = [
            1 - F.cosine_similarity(query.to(images.dtype), self.targets(view)).mean()
            for query, view in zip(queries, (other, images), strict=True)
        ]
        error = pixel_error(predicted, images, hidden, self.encoder.patch_size, self.norm_pix)
        return Losses(
            reconstruction=error.mean(),
            context=self.context_weight * (context[0] + context[1]),
        )

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's projection of the mean patch of whole images, [B, D]."""
        encoded = self.teacher["encoder"].encode(images)
        return self.teacher["projector"](encoded.patches.mean(1)).to(images.dtype)

    def after_step(self, step: Step) -> None:
        momentum = cosine(self.momentum, 1.0, step.progress)
        networks = {"encoder": self.encoder, "projector": self.projector}
        self.teacher.update(momentum, average_buffers=True, **networks)


def _view(image_size: int) -> View:
    colours = {"color_jitter": 0.4, "saturation": 0.2, "hue": 0.1, "jitter_probability": 0.8}
    one_of_three = {"grayscale": 1 / 3, "solarize": 1 / 3, "blur": 1 / 3}
    return View(augmentation=CROP.model_copy(update=colours | one_of_three), image_size=image_size)


def _head(width: int, hidden: int, layers: int, norm: Norm, activation: Activation) -> nn.Module:
    if layers == 0:
        return nn.Identity()
    widths = (width, *[hidden] * (layers - 1), width)
    head = mlp_head(
        widths, norm=norm, activation=activation, hidden_bias=False, last_bias=False, running_statistics=True
    )
    xavier_(head)
    return head
