"""Files in the layout of ConvMAE's code, which DMJD's kept: two convolutional stages, then a transformer."""

from __future__ import annotations

from typing import Any

from method_zoo.backbones.positions import sincos_positions
from method_zoo.weights.mae import DROPPED as DECODER
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

TENSOR = r"(weight|bias)"
RULES = [
    *((rf"patch_embed{i + 1}\.(proj|norm)\.{TENSOR}", rf"embeddings.{i}.\1.\2") for i in range(3)),
    (rf"patch_embed4\.{TENSOR}", r"projection.\1"),
    *(
        (rf"blocks{i + 1}\.(\d+)\.(norm[12]|conv[12]|attn|mlp\.fc[12])\.{TENSOR}", rf"stem.{i}.\1.\2.\3")
        for i in range(2)
    ),
    (rf"blocks3\.(\d+)\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{TENSOR}", r"blocks.\1.\2.\3"),
]
DROPPED = {
    **DECODER,
    r"norm\.(weight|bias)": "the norm of pre-training, behind what the stages add to the last block's tokens",
    r"stage[12]_output_decode\.(weight|bias)": "what the stages add in pre-training, and in no evaluation",
    r"proj_embed\.\d+\.(weight|bias)": "DMJD's head on visible patches",
    r"predictor\.0\.(weight|bias)": "DMJD's head on visible patches",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="sincos", init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    side, width = entry.image_size // 16, shapes["patch_embed4.bias"][0]
    tables = {"pos_embed": sincos_positions(width, (side, side)).unsqueeze(0)}
    return renamed(shapes, RULES, DROPPED, tables)


ORIGIN = Origin(
    key="convmae",
    version=1,
    summary="Alpha-VL/ConvMAE and mx-mark/DMJD: stages of convolutions before a transformer",
    config=_config,
    convert=_convert,
    containers=(("model",), ()),
)
