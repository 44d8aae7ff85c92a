"""A2MIM: architecture-agnostic masked image modeling, from ViT back to CNN."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import unpatchify
from method_zoo.parts.spectrum import focal_frequency
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe
from mimbench.watching import note_pixels


class A2MIM(Method):
    """Architecture-agnostic masked image modeling (Li et al., 2023, arXiv:2205.13943).

    Hidden patches are filled with the image's mean colour, so that any network takes them, and a mask token
    is added to them at some layer; a linear layer on the output regresses their pixels, and a focal loss
    in the Fourier domain asks for the frequencies that come out worst.
    """

    card = Card(
        key="a2mim",
        name="A2MIM",
        paper="Architecture-Agnostic Masked Image Modeling -- From ViT back to CNN",
        authors="Li, Wu, Wu, Zang, Li",
        year=2023,
        arxiv="2205.13943",
        code="https://github.com/Westlake-AI/openmixup",
        scheme="reconstruction",
        masking="random, cells of 32 pixels",
        target="low level: pixels and spectrum",
        architecture="ViT encoder with mask tokens added at a layer, linear head",
        objective="reconstruction (L1 and focal frequency loss)",
        classes=Classes(
            masking="random",
            target="pixels + spectrum",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1e-4,
            lr_rule="per_512",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=10 / 800,
            warmup_start_lr=4e-4 * 2e-6,
            schedule="multistep",
            milestones=(700 / 800,),
            clip_grad=5.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.67, 1.0), interpolation="bilinear", flip=True),
            source="Westlake-AI/openmixup configs/selfsup/a2mim, vit_base_l0_sz224_8xb128_accu2_step_ep800",
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "learned",
            "rel_pos": "per_block",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="verified",
        notes=(
            "The ViT version. mask_layer 0 adds the mask token to the embedded patches, as published for "
            "ViT; k adds it to what the k-th block gets. Where nothing is hidden, the code gives the "
            "Fourier loss the mean of prediction and image, the prediction without gradient "
            "(visible_fill=mixed), the paper the prediction (visible_fill=prediction). The spectrum is "
            "averaged over the batch before it is compared, in the code but not in the paper. The Fourier "
            "loss weighs 0.1, the paper's weight for a ViT; the code's configurations have 0.5 at times. "
            "The code adds 1e-5 to the number of hidden pixels it divides by, which float32 rounds away."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6,
        mask_unit: Annotated[int, Field(ge=1)] = 2,
        mask_layer: Annotated[int, Field(ge=0)] = 0,
        frequency_weight: Annotated[float, Field(gt=0)] = 0.1,
        visible_fill: Literal["mixed", "prediction", "image"] = "mixed",
    ):
        super().__init__()
        if mask_layer > backbone.depth:
            raise UserError(
                f"there is no block {mask_layer} for the mask token among {backbone.depth}; "
                f"choose a mask_layer from 0 to {backbone.depth}"
            )
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio, unit=mask_unit)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        self.mask_layer = mask_layer
        self.frequency_weight, self.visible_fill = frequency_weight, visible_fill
        self.head = nn.Linear(backbone.embed_dim, 3 * backbone.patch_size**2)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, self.filled(images, mask), mask, step.keys)

    def filled(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images whose hidden patches have the image's mean colour."""
        return torch.where(self._on_pixels(mask), images.mean((2, 3), keepdim=True), images)

    def losses(self, images: Tensor, seen: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses of images [B, 3, H, W] that are shown as ``seen``, under a given mask.

        mask: bool [B, N], True = hidden, equally many in each row.
        """

        def add_mask_token(tokens: Tensor) -> Tensor:
            return tokens + self.encoder.mask_token * mask.unsqueeze(-1)

        encoded = self.encoder.encode(seen, edits={self.mask_layer: add_mask_token}, keys=keys)
        predicted = unpatchify(self.head(encoded.patches), self.encoder.grid, order="channel")
        predicted = predicted.to(images.dtype)
        note_pixels(lambda: predicted)
        hidden = self._on_pixels(mask)
        error = (predicted - images).abs().mean(1, keepdim=True)
        share = {"mixed": 0.5, "prediction": 1.0, "image": 0.0}[self.visible_fill]
        filler = images.lerp(predicted.detach(), share)
        frequencies = focal_frequency(torch.where(hidden, predicted, filler), images)
        return Losses(
            reconstruction=error[hidden].mean(),
            frequencies=self.frequency_weight * frequencies,
        )

    def _on_pixels(self, mask: Tensor) -> Tensor:
        """A mask of patches [B, N] as one of pixels, [B, 1, H, W]."""
        size = self.encoder.patch_size
        cells = mask.view(-1, 1, *self.encoder.grid)
        return cells.repeat_interleave(size, 2).repeat_interleave(size, 3)
