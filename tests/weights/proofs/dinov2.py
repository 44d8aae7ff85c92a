"""DINOv2's layout: against timm, with and without registers, with GELU's and with gated MLPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.weights.proof import Proof, images_of, small

from ._reference import SIZES, noise, timm_model, tokens

SIZE = 70


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's state as the official code would have saved it."""
    official = dict(state)
    if "reg_token" in official:
        # timm adds the class token's position to the token itself.
        official["register_tokens"] = official.pop("reg_token")
        position = noise(1, 1, 48, seed=3)
        official["cls_token"] = official["cls_token"] - position
        official["pos_embed"] = torch.cat([position, official["pos_embed"]], dim=1)
    gated = official["blocks.0.mlp.fc1.weight"].shape[0] != official["blocks.0.mlp.fc2.weight"].shape[1]
    if gated:
        for name in [name for name in official if ".mlp." in name]:
            renamed = name.replace("fc1", "w12").replace("fc2", "w3")
            official[renamed] = official.pop(name)
    return official | {"mask_token": noise(1, 48)}


def _proof(name: str, timm_name: str, **options: Any) -> Proof:
    model, images = timm_model(timm_name, SIZE, **options), images_of(SIZE)
    out = tokens(model, images)
    entry = small(name, image_size=SIZE, options=SIZES)
    patches = out[:, model.num_prefix_tokens :]
    return Proof(entry, official(model.state_dict()), images, out[:, 0], patches, "timm's VisionTransformer")


PROOFS = {
    "base": lambda: _proof("dinov2@vit_base_patch14", "vit_base_patch14_dinov2"),
    "registers": lambda: _proof("dinov2@vit_large_patch14-reg", "vit_large_patch14_reg4_dinov2"),
    "gated": lambda: _proof("dinov2@vit_giant_patch14", "vit_giant_patch14_dinov2"),
    "gated, registers": lambda: _proof("dinov2@vit_giant_patch14-reg", "vit_giant_patch14_reg4_dinov2"),
}
