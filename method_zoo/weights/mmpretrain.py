"""Files of OpenMMLab's mmpretrain and mmselfsup, and of codes built on them: ViTs under other names."""

from __future__ import annotations

from typing import Any

from method_zoo.weights.mae import fixed_positions
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

# A file of the backbone alone, as OpenMMLab's script extracts it, has its names without the first part.
PREFIX = "backbone."
RULES = [
    (r"(cls_token)", r"\1"),
    (r"patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"layers\.(\d+)\.ln([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"ln1\.(weight|bias)", r"norm.\1"),
]
POSITIONS = "pos_embed"
# Parts of the backbone that only pre-training uses.
DROPPED_WITHIN = {
    r"mask_token": "stands for hidden patches, in pre-training only",
    r"proj_layers\.\d+\.(?:weight|bias)|proj_weights": "MFF's fusion of blocks for the decoder",
}
DROPPED = {
    r"neck\..*": "the decoder",
    r"target_generator\..*": "what computes the targets",
    r"(?:pixel|feature)_decoder\..*": "CMAE's decoders",
    r"target_(?:backbone|projector)\..*": "CMAE's moving average",
    r"projector\..*|head\.predictor\..*": "CMAE's projection heads",
}


def _config(entry: Entry) -> dict[str, Any]:
    # Its table of sin-cos positions has y's half first (``build_2d_sincos_position_embedding``).
    return config(entry, positions="sincos_y_first", cls_token=True, init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = _config(entry)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) else ""
    start = prefix.replace(".", r"\.")
    rules = [(start + pattern, ours) for pattern, ours in RULES]
    dropped = {f"{start}(?:{pattern})": why for pattern, why in DROPPED_WITHIN.items()} | DROPPED
    if built["positions"] == "learned":
        return renamed(shapes, [*rules, (start + POSITIONS, POSITIONS)], dropped)
    return renamed(shapes, rules, dropped, {prefix + POSITIONS: fixed_positions(built)})


ORIGIN = Origin(
    key="mmpretrain",
    version=1,
    summary="open-mmlab's mmpretrain and mmselfsup, and codes built on them: backbone.layers.N.ln1",
    config=_config,
    convert=_convert,
    containers=(("state_dict",), ()),
)
