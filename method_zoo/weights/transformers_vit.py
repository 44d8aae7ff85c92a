"""DINO's, MSN's and DINOv2's encoders as the transformers library wrote them anew for the Hugging Face hub.

Its names are one set for plain ViTs, another for DINOv2; queries, keys and values are three matrices in both.
Its configurations of plain ViTs give norms an epsilon of 1e-12; the official codes have 1e-6, as here.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from method_zoo.weights import dino, dinov2, msn
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Rules, Shapes, renamed, within

LAYER = r"encoder\.layer\.(\d+)\."
RULES: Rules = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (LAYER + r"(norm[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (LAYER + r"mlp\.(fc[12])\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (LAYER + r"mlp\.weights_in\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"mlp\.weights_out\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
]
QUERY = LAYER + r"attention\.attention\.query\.(weight|bias)"
PREFIX = r"(?:vit\.)?"  # of MSN's, saved inside of a model with a classifier
DROPPED = {
    rf"{PREFIX}embeddings\.mask_token": "the mask token, which only pre-training shows",
    r"pooler\.dense\.(?:weight|bias)": "a pooler that was never trained",
    r"classifier\.(?:weight|bias)": "a classifier that was never trained",
}


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _config(entry: Entry) -> dict[str, Any]:
    return {"dino": dino, "msn": msn, "dinov2": dinov2}[entry.method].ORIGIN.config(entry)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    joined, parts = {}, set()
    for name in shapes:
        if match := re.fullmatch(PREFIX + QUERY, name):
            of = tuple(name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
            joined[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = Made(of, _joined)
            parts |= set(of)
    rest = {name: shape for name, shape in shapes.items() if name not in parts}
    found = renamed(rest, within(PREFIX, RULES), DROPPED)
    return Conversion({**joined, **found.made}, found.dropped)


ORIGIN = Origin(
    key="transformers_vit",
    version=1,
    summary="facebook/dino-*, vit-msn-* and dinov2-* on the Hugging Face hub: as transformers names them",
    config=_config,
    convert=_convert,
)
