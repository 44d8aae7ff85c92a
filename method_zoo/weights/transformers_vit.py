"""DINO's, MSN's and DINOv2's encoders as the transformers library wrote them anew for the Hugging Face hub.

Its names are one set for plain ViTs, another for DINOv2. Its configurations of plain ViTs give norms an
epsilon of 1e-12; the official codes have 1e-6, as here.
"""

from __future__ import annotations

from typing import Any

from method_zoo.weights import dino, dinov2, msn
from method_zoo.weights._transformers import LAYER, conversion
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Origin, Rules

PREFIX = r"(?:vit\.)?"  # of MSN's, saved inside of a model with a classifier
RULES: Rules = [
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (LAYER + r"(norm[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"mlp\.(fc[12])\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (LAYER + r"mlp\.weights_in\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"mlp\.weights_out\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
]
DROPPED = {
    rf"{PREFIX}embeddings\.mask_token": "the mask token, which only pre-training shows",
    r"pooler\.dense\.(?:weight|bias)": "a pooler that was never trained",
    r"classifier\.(?:weight|bias)": "a classifier that was never trained",
}


def _config(entry: Entry) -> dict[str, Any]:
    return {"dino": dino, "msn": msn, "dinov2": dinov2}[entry.method].ORIGIN.config(entry)


ORIGIN = Origin(
    key="transformers_vit",
    version=1,
    summary="facebook/dino-*, vit-msn-* and dinov2-* on the Hugging Face hub: as transformers names them",
    config=_config,
    convert=lambda shapes, entry: conversion(shapes, PREFIX, RULES, DROPPED),
)
