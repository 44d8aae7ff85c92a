"""A2MIM's ViT under OpenMixup's names, against timm's BEiT on whole images."""

from __future__ import annotations

from tests.weights.proof import Proof

from ._beit import SIZES, beit, index, noise, whole_images
from ._timm import officially

WIDTH = SIZES["embed_dim"]
OFFICIAL = [
    (r"patch_embed\.proj\.(.*)", r"patch_embed.projection.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"layers.\1.ln\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"layers.\1.ffn.layers.0.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"layers.\1.ffn.layers.1.\2"),
    (r"blocks\.(.*)", r"layers.\1"),
    (r"norm\.(.*)", r"ln1.\1"),
]


def vit() -> Proof:
    model = beit(use_abs_pos_emb=True, use_shared_rel_pos_bias=False, use_rel_pos_bias=True)
    state = officially(model.state_dict(), OFFICIAL, "backbone.")
    state |= {f"backbone.layers.{i}.attn.relative_position_index": index() for i in range(SIZES["depth"])}
    state |= {"backbone.mask_token": noise(1, 1, WIDTH)}
    state |= {"neck.decoder_pred.0.weight": noise(768, WIDTH, 1, 1), "neck.decoder_pred.0.bias": noise(768)}
    return whole_images("a2mim@vit_base", model, {"state_dict": state})


PROOFS = {"ViT": vit}
