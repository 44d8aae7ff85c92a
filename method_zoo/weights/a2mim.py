"""Files of OpenMixup's ViTs (A2MIM's): mmpretrain's names with BEiT's biases and tables in each block."""

from __future__ import annotations

from typing import Any

from method_zoo.weights.mmpretrain import RULES
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

MORE = [
    (r"layers\.(\d+)\.attn\.([qv]_bias)", r"blocks.\1.attn.qkv.\2"),
    (r"layers\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
    (r"layers\.(\d+)\.attn\.(relative_position_bias_table)", r"rel_pos.\1.\2"),
    (r"(pos_embed)", r"\1"),
]
DROPPED = {
    r"backbone\.layers\.\d+\.attn\.relative_position_index": "which pair looks up which row",
    r"backbone\.mask_token": "stands for hidden patches in pre-training",
    r"neck\.decoder_pred\.0\.(weight|bias)": "the head that predicts pixels",
}


def _config(entry: Entry) -> dict[str, Any]:
    options = {"positions": "learned", "rel_pos": "per_block", "layer_scale": 0.1, "qkv_bias": "query_value"}
    return config(entry, **options, init="beit")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, within(r"backbone\.", [*RULES, *MORE]), DROPPED)


ORIGIN = Origin(
    key="a2mim",
    version=1,
    summary="Westlake-AI/openmixup's ViTs: mmpretrain's names, BEiT's biases and tables in each block",
    config=_config,
    convert=_convert,
    containers=(("state_dict",), ()),
)
