"""MAE's files as the transformers library wrote them anew: every part has another name.

facebook/vit-mae-* on the Hugging Face hub. Queries, keys and values are three maps there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.weights import mae
from mimbench.registry import build_backbone
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Rules, Shapes, renamed

LAYER = r"vit\.encoder\.layer\.(\d+)\."
RULES: Rules = [
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (LAYER + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"vit\.layernorm\.(weight|bias)", r"norm.\1"),
]
POSITIONS = "vit.embeddings.position_embeddings"
DROPPED = {r"decoder\..*": "the decoder"}


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = mae.ORIGIN.config(entry)
    with torch.device("meta"):
        depth = build_backbone(**built).depth
    start = "vit.encoder.layer.{}.attention.attention.{}.{}"
    joined = {
        f"blocks.{i}.attn.qkv.{kind}": Made(
            tuple(start.format(i, part, kind) for part in ("query", "key", "value")), _joined
        )
        for i in range(depth)
        for kind in ("weight", "bias")
    }
    if built["positions"] == "learned":
        rest = renamed(shapes, [*RULES, (POSITIONS.replace(".", r"\."), "pos_embed")], DROPPED)
    else:
        rest = renamed(shapes, RULES, DROPPED, {POSITIONS: mae.fixed_positions(built)})
    return Conversion({**joined, **rest.made}, rest.dropped, rest.fresh, rest.tables)


ORIGIN = Origin(
    key="transformers_mae",
    version=1,
    summary="facebook/vit-mae-* on the Hugging Face hub: MAE as transformers names it",
    config=mae.ORIGIN.config,
    convert=_convert,
    containers=((),),
)
