"""Files in the layout of HiViT's code: MLPs on cells, merging and transformer blocks in one list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from method_zoo.backbones.hivit import SIZES
from method_zoo.weights.mae import DROPPED as DECODER
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Rules, Shapes, config, renamed

TENSOR = r"(weight|bias)"
DROPPED = {
    **DECODER,
    r"norm\.(weight|bias)": "the norm of what the decoder gets, all stages' outputs side by side",
}


def layout_config(entry: Entry) -> dict[str, Any]:
    """The arguments of ``registry.build_backbone``; positions are trained."""
    return config(entry, positions="learned", init="mae")


def converted(shapes: Shapes, entry: Entry, dropped: Mapping[str, str]) -> Conversion:
    """A conversion of a file of this layout.

    Queries and values may have biases of their own, ``q_bias`` and ``v_bias``, as in one state of iTPN's
    code: ours has one for all three, and that of the keys is 0.
    """
    sizes = {**SIZES.get(entry.backbone, {}), **layout_config(entry)}
    found = renamed(shapes, _rules(sizes["stem_depth"], sizes["depth"]), dropped)
    made, first = dict(found.made), 2 * (sizes["stem_depth"] + 1)
    for i in range(sizes["depth"]):
        split = tuple(f"blocks.{first + i}.attn.{part}_bias" for part in "qv")
        if all(name in shapes for name in split):
            made[f"blocks.{i}.attn.qkv.bias"] = Made(split, _joined_bias)
    return Conversion(made, found.dropped)


def _joined_bias(q: Tensor, v: Tensor) -> Tensor:
    return torch.cat([q, torch.zeros_like(q), v])


def _rules(stem_depth: int, depth: int) -> Rules:
    """The official list counts a stage's MLPs, the merging behind them and so on through all stages."""
    rules = [
        (rf"patch_embed\.proj\.{TENSOR}", r"cells.\1"),
        (rf"patch_embed\.norm\.{TENSOR}", r"cells_norm.\1"),
        (r"absolute_pos_embed", "pos_embed"),
    ]
    for stage in range(2):
        first = stage * (stem_depth + 1)
        for i in range(stem_depth):
            there, here = rf"blocks\.{first + i}", f"stem.{stage}.{i}"
            rules.append((rf"{there}\.(norm2|mlp\.fc[12])\.{TENSOR}", rf"{here}.\1.\2"))
            rules.append((rf"{there}\.gamma_2", f"{here}.ls2.gamma"))
        there, here = rf"blocks\.{first + stem_depth}", f"stem.{stage}.{stem_depth - 1}.merge"
        rules.append((rf"{there}\.(norm|reduction)\.{TENSOR}", rf"{here}.\1.\2"))
    for i in range(depth):
        there, here = rf"blocks\.{2 * (stem_depth + 1) + i}", f"blocks.{i}"
        rules.append((rf"{there}\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{TENSOR}", rf"{here}.\1.\2"))
        rules.append((rf"{there}\.gamma_([12])", rf"{here}.ls\1.gamma"))
        table = "relative_position_bias_table"
        rules.append((rf"{there}\.attn\.{table}", f"rel_pos.{i}.{table}"))
    return rules


ORIGIN = Origin(
    key="hivit",
    version=1,
    summary="zhangxiaosong18/hivit, masked autoencoding: cells, merging and blocks in one list",
    config=layout_config,
    convert=lambda shapes, entry: converted(shapes, entry, DROPPED),
    containers=(("model",), ()),
)
