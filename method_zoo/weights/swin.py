"""Files in the layout of Swin's code in which the encoder is a part of a model: SimMIM's."""

from __future__ import annotations

from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

ENDS = r"\.(?:weight|bias)"
RULES = [
    (
        rf"(layers\.\d\.blocks\.\d+\.(?:(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]){ENDS}"
        r"|attn\.relative_position_bias_table))",
        r"model.\1",
    ),
    # timm has them at the beginning of the next stage
    *(
        (
            rf"layers\.{i}\.downsample\.(reduction\.weight|norm{ENDS})",
            rf"model.layers.{i + 1}.downsample.\1",
        )
        for i in range(3)
    ),
    (rf"(patch_embed\.(?:proj|norm){ENDS})", r"model.\1"),
    (rf"(norm{ENDS})", r"\1"),
]
DROPPED = {
    r"encoder\.layers\.\d\.blocks\.\d+\.attn\.relative_position_index": "an index that timm computes",
    r"encoder\.layers\.\d\.blocks\.\d+\.attn_mask": "a mask between windows that timm computes",
    r"encoder\.mask_token": "hidden patches are no input of the encoder",
    r"decoder\.0\.(weight|bias)": "the head that predicts pixels",
}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, within(r"encoder\.", RULES), DROPPED)


ORIGIN = Origin(
    key="swin",
    version=1,
    summary="microsoft/SimMIM's Swin: Swin's encoder within a model",
    config=config,
    convert=_convert,
    containers=(("model",), ()),
)
