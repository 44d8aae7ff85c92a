"""MaskFeat's layout: against timm's ViT on whole images, with an unused norm that is NaN.

``test_official_predictions`` compares with the official code under a mask.
"""

from __future__ import annotations

import torch
from timm.models import VisionTransformer
from torch import nn

from tests.weights.proof import Proof

from ._beit import IMAGE_SIZE, SIZES, noise, randomised, whole_images

WIDTH = SIZES["embed_dim"]


def whole() -> Proof:
    model = randomised(VisionTransformer(img_size=IMAGE_SIZE, patch_size=16, num_classes=0, **SIZES))
    state = model.state_dict()
    model.norm = nn.Identity()
    lost = {f"norm.{part}": torch.full((WIDTH,), torch.nan).double() for part in ("weight", "bias")}
    head = {f"pred_head.transforms.0.0.{part}": noise(WIDTH) for part in ("weight", "bias")}
    head |= {"pred_head.projections.0.weight": noise(108, WIDTH), "pred_head.projections.0.bias": noise(108)}
    filters = {f"hogs.0.weight_{axis}": noise(3, 1, 3, 3) for axis in "xy"}
    extra = lost | head | filters | {"mask_token": noise(1, 1, WIDTH)}
    return whole_images("maskfeat@vit_base", model, {"model_state": state | extra, "epoch": 1600})


PROOFS = {"whole images": whole}
