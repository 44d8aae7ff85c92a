"""Files in the layout of BEiT's code: no bias on keys, tables of relative positions, layer scale.

BEiT, BEiT v2, data2vec, EVA-01, ConMIM, dBOT with CLIP's features and timm's Beit share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import gen_relative_position_index
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones.positions import FIXED
from method_zoo.weights.mae import BLOCK
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Rules, Shapes, config, renamed

SPLIT_BIAS = (r"(blocks\.\d+\.attn)\.([qv]_bias)", r"\1.qkv.\2")
LAYER_SCALE = (r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma")
STEM = (r"(cls_token|patch_embed\.proj\.(?:weight|bias))", r"\1")
NORM = (r"(norm\.(?:weight|bias))", r"\1")
TABLE = {
    "none": [],
    "shared": [(r"rel_pos_bias\.(relative_position_bias_table)", r"rel_pos.0.\1")],
    "per_block": [(r"blocks\.(\d+)\.attn\.(relative_position_bias_table)", r"rel_pos.\1.\2")],
}
INDEX = r"(?:rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index"
DROPPED = {
    r"lm_head\.(weight|bias)": "the head that predicts tokens or features",
    r"cls_pt_layers\.\d+\..*": "BEiT v2's blocks behind the encoder, which end at its second head",
    r"cls_pt_(norm|lm_head)\.(weight|bias)": "BEiT v2's second head",
}
FINE_TUNED = {
    r"head\.(weight|bias)": "the classifier",
    r"fc_norm\.(weight|bias)": "the classifier's norm of averaged tokens; the tokens have none",
}
# What BEiT's pre-training command sets; entries say where a file differs.
OPTIONS: dict[str, Any] = {
    "positions": "none",
    "rel_pos": "shared",
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
    "init": "beit",
}


def conversion(
    shapes: Shapes, built: Mapping[str, Any], dropped: Mapping[str, str], prefix: str = ""
) -> Conversion:
    """What becomes of a file with BEiT's names, or MAE's, behind ``prefix``.

    built: the arguments of ``registry.build_backbone``. dropped: see ``renamed``. Fixed positions that the
    file holds, and which pair of places looks up which row of a table, must be what the backbone computes.
    """
    rules: list[tuple[str, str]] = [BLOCK, STEM, *TABLE[built.get("rel_pos", "none")]]
    if built.get("qkv_bias") == "query_value":
        rules.append(SPLIT_BIAS)
    if built.get("layer_scale") is not None:
        rules.append(LAYER_SCALE)
    if built.get("final_norm", True):
        rules.append(NORM)
    if built.get("mask_token"):
        rules.append((r"(mask_token)", r"\1"))
    else:
        dropped = {**dropped, re.escape(f"{prefix}mask_token"): "stands for hidden patches in pre-training"}
    if built["positions"] == "learned":
        rules.append((r"(pos_embed)", r"\1"))
    found: Rules = [(re.escape(prefix) + name, ours) for name, ours in rules]
    tables = {name: table for name, table in _tables(shapes, built, prefix).items() if name in shapes}
    return renamed(shapes, found, dropped, tables)


def _tables(shapes: Shapes, built: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Fixed tables that a file may hold, by official name."""
    side = built["image_size"] // int(built["name"].rpartition("patch")[2])
    found: dict[str, Tensor] = {}
    if built["positions"] in FIXED and f"{prefix}cls_token" in shapes:
        table = FIXED[built["positions"]](shapes[f"{prefix}cls_token"][-1], (side, side))
        found[f"{prefix}pos_embed"] = F.pad(table, (0, 0, 1, 0))  # a class token's are 0
    if built.get("rel_pos", "none") != "none":
        found |= index_table(
            built, [name for name in shapes if re.fullmatch(re.escape(prefix) + INDEX, name)]
        )
    return found


def index_table(built: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """Which row of a table of relative positions each pair of places looks up, by the names it has."""
    side = built["image_size"] // int(built["name"].rpartition("patch")[2])
    return dict.fromkeys(names, gen_relative_position_index((side, side), class_token=True).float())


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, **{**OPTIONS, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return conversion(shapes, _config(entry), {**DROPPED, **FINE_TUNED} if entry.labels else DROPPED)


ORIGIN = Origin(
    key="beit",
    version=1,
    summary="BEiT's code in microsoft/unilm and what is built on it: relative positions, no bias on keys",
    config=_config,
    convert=_convert,
    # BEiT v2 and EVA were saved by deepspeed ("module"); timm's copies are bare safetensors.
    containers=(("model",), ("module",), ()),
)
