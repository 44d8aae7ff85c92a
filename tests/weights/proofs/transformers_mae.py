"""transformers' MAE: the encoder written out over its names.

When it was written, ViTMAEForPreTraining of transformers 4.46.3 loaded these names without one missing or
unexpected, and with its epsilon set to 1e-6 gave the same tokens to 6e-15; the library is too large a
dependency for this one proof. Its configuration of the released files says 1e-12, MAE's code 1e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.weights.plain import Names, random_state, tokens
from tests.weights.proof import Proof, images_of, small

LAYER = "vit.encoder.layer.{}."
NAMES = Names(
    embed="vit.embeddings.patch_embeddings.projection",
    cls="vit.embeddings.cls_token",
    positions="vit.embeddings.position_embeddings",
    norm1=LAYER + "layernorm_before",
    qkv="",
    split=tuple(LAYER + f"attention.attention.{part}" for part in ("query", "key", "value")),
    proj=LAYER + "attention.output.dense",
    norm2=LAYER + "layernorm_after",
    fc1=LAYER + "intermediate.dense",
    fc2=LAYER + "output.dense",
    norm="vit.layernorm",
)
DECODER = {
    "decoder.mask_token": (1, 1, 32),
    "decoder.decoder_pos_embed": (1, 17, 32),
    "decoder.decoder_embed.weight": (32, 48),
    "decoder.decoder_layers.0.attention.attention.query.weight": (32, 32),
    "decoder.decoder_pred.bias": (192,),
}


def whole_images() -> Proof:
    state: dict[str, Tensor] = random_state(48, 3, patch=8, side=4, names=NAMES)
    images = images_of(32)
    found = tokens(state, images, 3, NAMES)
    entry = small(
        "mae@vit_base-visualize",
        origin="transformers_mae",
        backbone="vit_base_patch8",
        image_size=32,
        options={"embed_dim": 48, "depth": 3, "num_heads": 3},
    )
    state |= {name: torch.randn(shape) for name, shape in DECODER.items()}
    return Proof(entry, state, images, found[:, 0], found[:, 1:], "the encoder written out")


PROOFS = {"whole images": whole_images}
