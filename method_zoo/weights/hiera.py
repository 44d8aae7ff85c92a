"""Files in the layout of Hiera's code (facebookresearch/hiera), encoder and decoder of its MAE."""

from __future__ import annotations

from typing import Any

from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

ENDS = r"\.(?:weight|bias)"
RULES = [
    (rf"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|proj){ENDS})", r"model.\1"),
    (rf"(patch_embed\.proj{ENDS}|pos_embed)", r"model.\1"),
]
DROPPED = {
    r"encoder_norm\.(weight|bias)": "it is of the sum of all stages, which only the decoder gets",
    r"multi_scale_fusion_heads\.\d\.(weight|bias)": "they sum the stages for the decoder",
    r"decoder_(embed|norm|pred)\.(weight|bias)": "the decoder",
    r"decoder_pos_embed": "the decoder",
    r"decoder_blocks\..*": "the decoder",
    r"mask_token": "hidden patches are left out, and the token is the decoder's",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, final_norm=False)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, RULES, DROPPED)


ORIGIN = Origin(
    key="hiera",
    version=1,
    summary="facebookresearch/hiera: encoder and decoder of its masked autoencoder",
    config=_config,
    convert=_convert,
    containers=(("model_state",),),
)
