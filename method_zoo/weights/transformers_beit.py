"""BEiT's label-free files as the transformers library wrote them anew: every part has another name.

microsoft/beit-*-pt22k on the Hugging Face hub. Queries, keys and values are three matrices there; the final
norm is a part of what predicts tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.weights import beit
from mimbench.registry import build_backbone
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Rules, Shapes, renamed

LAYER = r"beit\.encoder\.layer\.(\d+)\."
RULES: Rules = [
    (r"beit\.embeddings\.cls_token", "cls_token"),
    (r"beit\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"beit\.encoder\.relative_position_bias\.(relative_position_bias_table)", r"rel_pos.0.\1"),
    (LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (LAYER + r"lambda_([12])", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"attention\.attention\.query\.bias", r"blocks.\1.attn.qkv.q_bias"),
    (LAYER + r"attention\.attention\.value\.bias", r"blocks.\1.attn.qkv.v_bias"),
    (LAYER + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
]
DROPPED = {
    r"beit\.embeddings\.mask_token": "stands for hidden patches in pre-training",
    r"lm_head\.(weight|bias)": "the head that predicts tokens",
}
INDEX = "beit.encoder.relative_position_bias.relative_position_index"


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = beit.ORIGIN.config(entry)
    with torch.device("meta"):
        depth = build_backbone(**built).depth
    projections = {
        f"blocks.{i}.attn.qkv.weight": Made(
            tuple(
                f"beit.encoder.layer.{i}.attention.attention.{part}.weight"
                for part in ("query", "key", "value")
            ),
            _joined,
        )
        for i in range(depth)
    }
    rest = renamed(shapes, RULES, DROPPED, beit.index_table(built, [INDEX] if INDEX in shapes else []))
    return Conversion({**projections, **rest.made}, rest.dropped, rest.fresh, rest.tables)


ORIGIN = Origin(
    key="transformers_beit",
    version=1,
    summary="microsoft/beit-*-pt22k on the Hugging Face hub: BEiT as transformers names it",
    config=beit.ORIGIN.config,
    convert=_convert,
    containers=((),),
)
