"""Files in the layout of iTPN's codes, for pixels and for CLIP's features: HiViT's and a feature pyramid."""

from __future__ import annotations

from method_zoo.weights.hivit import converted, layout_config
from method_zoo.weights.mae import DROPPED as DECODER
from mimbench.weights.origin import Origin

PYRAMID = "the feature pyramid, which classification leaves out and detection keeps"
DROPPED = {
    **DECODER,
    r"align_dim_(16tofpn|16to8|8to4)\.(weight|bias)": PYRAMID,
    r"split_(16to8|8to4)\.(norm|reduction)\.(weight|bias)": PYRAMID,
    r"(block_(16to8|8to4)|fpn_modules)\.\d+\.(norm2|mlp\.fc[12])\.(weight|bias)": PYRAMID,
    r"(norm|norm_cls)\.(weight|bias)": "norms before the heads on CLIP's features",
    r"lm_(cls_)?head\.(weight|bias)": "heads on CLIP's features",
    r"cls_pt_layers\.[01]\.(gamma_[12]|(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)"
    r"|attn\.([qv]_bias|relative_position_bias_table))": "blocks of a head on an earlier block's tokens",
    r"relative_position_index": "computed",
}

ORIGIN = Origin(
    key="itpn",
    version=1,
    summary="sunsmarterjie/iTPN, taught by pixels or by CLIP: HiViT's layout with a feature pyramid",
    config=layout_config,
    convert=lambda shapes, entry: converted(shapes, entry, DROPPED),
    containers=(("model",), ("module",), ()),
)
