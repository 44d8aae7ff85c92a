"""transformers' ViT and DINOv2: timm's models under the names of transformers' own conversion scripts."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from tests.weights.proof import Proof, images_of, small

from ._reference import SIZES, noise, timm_model, tokens, within
from .dinov2 import official

SHARED = [
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
]
VIT = [
    *SHARED,
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
]
DINOV2 = [
    *SHARED,
    (r"^blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.mlp\.w12\.", r"encoder.layer.\1.mlp.weights_in."),
    (r"^blocks\.(\d+)\.mlp\.w3\.", r"encoder.layer.\1.mlp.weights_out."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
]


def renamed(state: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """An official state as the conversion scripts of transformers rename it."""
    found = {}
    for name, value in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            at = f"encoder.layer.{match[1]}.attention.attention"
            found |= {f"{at}.{part}.{match[2]}": third for part, third in parts}
            continue
        for pattern, theirs in rules:
            again, hits = re.subn(pattern, theirs, name)
            if hits:
                found[again] = value
                break
    assert len(found) == len(state) + 2 * sum(".qkv." in name for name in state)
    return found


def _proof(name: str, timm_name: str, rules: list[tuple[str, str]], wrap: Any, size: int) -> Proof:
    model, images = timm_model(timm_name, size), images_of(size)
    out, state = tokens(model, images), model.state_dict()
    content = wrap(renamed(official(state) if rules is DINOV2 else state, rules))
    entry = small(name, origin="transformers_vit", image_size=size, options=SIZES)
    patches = out[:, model.num_prefix_tokens :]
    return Proof(entry, content, images, out[:, 0], patches, "timm's VisionTransformer")


def _classified(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return within("vit.", state) | {"classifier.weight": noise(10, 48), "classifier.bias": noise(10)}


PROOFS = {
    "dino": lambda: _proof("dino@vit_small", "vit_small_patch16_224", VIT, dict, 64),
    "msn, inside of a classifier": lambda: _proof(
        "msn@vit_small", "vit_small_patch16_224", VIT, _classified, 64
    ),
    "dinov2": lambda: _proof("dinov2@vit_base_patch14", "vit_base_patch14_dinov2", DINOV2, dict, 70),
    "dinov2, gated, registers": lambda: _proof(
        "dinov2@vit_giant_patch14-reg", "vit_giant_patch14_reg4_dinov2", DINOV2, dict, 70
    ),
}
