"""Hiera's layout, with the decoder of its masked autoencoder, against timm's Hiera on whole images."""

from __future__ import annotations

from tests.weights.proof import Proof

from ._timm import noise, of_timm, officially, proof

ARGS = {"embed_dim": 16, "stages": [1, 1, 2, 1]}


def official() -> Proof:
    model = of_timm("hiera_base_224", 64, **ARGS)
    state = officially(model.state_dict(), [(r"head\.norm\.(.*)", r"encoder_norm.\1")])
    state |= {
        f"multi_scale_fusion_heads.{i}.{end}": noise(4, 4) for i in range(3) for end in ("weight", "bias")
    }
    state |= {f"decoder_{part}.weight": noise(4) for part in ("embed", "norm", "pred")}
    state |= {
        "decoder_blocks.0.attn.qkv.weight": noise(4),
        "decoder_pos_embed": noise(4),
        "mask_token": noise(4),
    }
    return proof("hiera@base", {"model_state": state}, model, 64, ARGS)


PROOFS = {"MAE": official}
