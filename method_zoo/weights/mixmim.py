"""Files in the layout of MixMAE's code, which calls it MixMIM: Swin's names, and absolute positions."""

from __future__ import annotations

from method_zoo.backbones.mixmim import CELL
from method_zoo.backbones.positions import sincos_positions
from method_zoo.weights.mae import DROPPED as DECODER
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

TENSOR = r"(weight|bias)"
BLOCK = rf"(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{TENSOR}"
TABLE = r"attn\.(relative_position_bias_table)"
MERGE = rf"downsample\.(norm|reduction)\.{TENSOR}"
RULES = [
    (rf"patch_embed\.proj\.{TENSOR}", r"cells.\1"),
    (rf"patch_embed\.norm\.{TENSOR}", r"cells_norm.\1"),
    (rf"layers\.([012])\.blocks\.(\d+)\.{BLOCK}", r"stem.\1.\2.\3.\4"),
    (rf"layers\.([012])\.blocks\.(\d+)\.{TABLE}", r"stem_rel_pos.\1.\2.\3"),
    (rf"layers\.0\.{MERGE}", r"stem.1.0.merge.\1.\2"),
    (rf"layers\.1\.{MERGE}", r"stem.2.0.merge.\1.\2"),
    (rf"layers\.2\.{MERGE}", r"blocks.0.merge.\1.\2"),
    (rf"layers\.3\.blocks\.(\d+)\.{BLOCK}", r"blocks.\1.\2.\3"),
    (rf"layers\.3\.blocks\.(\d+)\.{TABLE}", r"rel_pos.\1.\2"),
    (rf"norm\.{TENSOR}", r"norm.\1"),
]
DROPPED = {
    **DECODER,
    r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": "computed",
}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    side, width = entry.image_size // CELL, shapes["patch_embed.proj.bias"][0]
    table = sincos_positions(width, (side, side)).unsqueeze(0)
    return renamed(shapes, RULES, DROPPED, {"absolute_pos_embed": table})


ORIGIN = Origin(
    key="mixmim",
    version=1,
    summary="Sense-X/MixMIM (MixMAE): Swin's names, fixed sin-cos positions, windows that do not shift",
    config=config,
    convert=_convert,
    containers=(("model",), ()),
)
