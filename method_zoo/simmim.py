"""SimMIM: a simple framework for masked image modeling."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.losses import pixel_distance
from method_zoo.parts.masking import RandomMask
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class SimMIM(Method):
    """SimMIM (Xie et al., 2022, arXiv:2111.09886).

    Hidden patches become a mask token in the encoder's input; one linear layer on the encoder's output
    regresses their raw pixels under an L1 loss. The mask's cells are larger than a patch.
    """

    card = Card(
        key="simmim",
        name="SimMIM",
        paper="SimMIM: A Simple Framework for Masked Image Modeling",
        authors="Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu",
        year=2022,
        arxiv="2111.09886",
        code="https://github.com/microsoft/SimMIM",
        scheme="reconstruction",
        masking="random, cells of 32 pixels",
        target="low level: pixels",
        architecture="ViT encoder with mask tokens, linear head",
        objective="reconstruction (L1)",
        classes=Classes(
            masking="random",
            target="pixels",
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
            warmup_start_lr=4 * 5e-7,
            schedule="multistep",
            milestones=(700 / 800,),
            clip_grad=5.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.67, 1.0), interpolation="bilinear", flip=True),
            source=(
                "microsoft/SimMIM config.py and simmim_pretrain__vit_base__img224__800ep.yaml, "
                "16 GPUs x 128 as in its README"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={
            "positions": "none",
            "rel_pos": "shared",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="verified",
        notes=(
            "The ViT version; the paper's main model is a Swin, which is not part of this zoo yet. "
            "mask_unit counts patches: 2 is the published 32 pixels at patch 16. The code adds 1e-5 to the "
            "number of hidden pixels it divides by, which float32 rounds away. Initial weights follow "
            "BEiT's code, which cuts every normal distribution at one standard deviation where SimMIM's "
            "cuts only the mask token's."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6,
        mask_unit: Annotated[int, Field(ge=1)] = 2,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio, unit=mask_unit)
        self.masking.hidden_cells(backbone.grid)  # cells that do not tile the grid are found out now
        self.head = nn.Linear(backbone.embed_dim, 3 * backbone.patch_size**2)
        truncated_normal_(self.head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        return self.losses(images, self.masking(step.keys, self.encoder.grid), step.keys)

    def losses(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden."""
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        predicted = self.head(encoded.patches[mask])
        return Losses(reconstruction=pixel_distance(predicted, images, mask, self.encoder.patch_size))
