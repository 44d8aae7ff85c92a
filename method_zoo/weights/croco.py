"""CroCo's layout: MAE's blocks by other names, no class token, a decoder that looks at another view."""

from __future__ import annotations

from typing import Any

from method_zoo.weights.mae import BLOCK, EMBEDDING, fixed_positions
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Rules, Shapes, config, renamed, within

RULES: Rules = [
    *within("enc_", [BLOCK, (r"norm\.(weight|bias)", r"norm.\1")]),
    EMBEDDING,
]
DROPPED = {
    r"dec_blocks\.\d+\..*": "the decoder",
    r"(?:dec_norm|decoder_embed|prediction_head)\.(?:weight|bias)": "the decoder",
    r"dec_pos_embed": "the decoder's positions",
    r"mask_token": "hidden patches are left out, and the token is the decoder's",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="sincos", cls_token=False, init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, RULES, DROPPED, {"enc_pos_embed": fixed_positions(_config(entry))})


ORIGIN = Origin(
    key="croco",
    version=1,
    summary="naver/croco: MAE's blocks as enc_blocks, no class token, a decoder with cross-attention",
    config=_config,
    convert=_convert,
    containers=(("model",),),
)
