"""Files in the layout of EVA-02's code, which UTA kept for the image part of a CLIP: timm's ``Eva`` models.

The base and large models of EVA-02 have sub-layer norms, for which their code splits queries, keys and values
and the two halves of the gated MLP; the tiny and small ones have neither.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

PREFIX = r"(?:visual\.)?"  # of the image part of UTA's CLIP
RULES = [
    (r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias))", r"model.\1"),
    (r"(norm\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.norm[12]\.(?:weight|bias))", r"model.\1"),
    (r"(blocks\.\d+\.attn\.(?:proj\.(?:weight|bias)|(?:qkv|[qkv]_proj)\.weight))", r"model.\1"),
    (r"(blocks\.\d+\.mlp\.)w12(\.(?:weight|bias))", r"model.\1fc1\2"),
    (r"(blocks\.\d+\.mlp\.)w1(\.(?:weight|bias))", r"model.\1fc1_g\2"),
    (r"(blocks\.\d+\.mlp\.)w2(\.(?:weight|bias))", r"model.\1fc1_x\2"),
    (r"(blocks\.\d+\.mlp\.)w3(\.(?:weight|bias))", r"model.\1fc2\2"),
    (r"(blocks\.\d+\.mlp\.)ffn_ln(\.(?:weight|bias))", r"model.\1norm\2"),
]
DROPPED = {
    r"mask_token": "the mask token, which only pre-training shows",
    r"lm_head\.(?:weight|bias)": "the layer that predicts the teacher's features",
    r"visual\.head\.(?:weight|bias)": "the projection to the space that images and texts share",
    r"text\..+": "the text part of the CLIP",
    r"logit_scale": "the temperature of the CLIP",
}
# One module in the code, listed once more in each block.
ROPE = rf"{PREFIX}(?:blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)"
SIDE = 16  # patches a side of the images whose places are the whole numbers


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry)


def rotations(dim: int, side: int, reference: int) -> Tensor:
    """Angles of the rotary positions of an image's patches, float64 [side², dim].

    The first half of a head's ``dim`` channels turns with the row, the second with the column, neighbours in
    pairs, at frequencies 10000^(-4k/dim); places run from 0 to ``reference`` whatever ``side``.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) * 4 / dim)
    places = torch.arange(side, dtype=torch.float64) / side * reference
    angles = (places[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    reference = entry.options.get("model_args", {}).get("ref_feat_shape", [SIDE])[0]
    tables = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(ROPE, name):
            angles = rotations(shape[1], round(shape[0] ** 0.5), reference)
            tables[name] = (angles.cos() if match[1] == "cos" else angles.sin()).float()
    split = any(re.fullmatch(rf"{PREFIX}blocks\.0\.attn\.q_proj\.weight", name) for name in shapes)
    biases = (r"(blocks\.\d+\.attn\.)([qv])_bias", r"model.\1\2_proj.bias" if split else r"model.\1\2_bias")
    return renamed(shapes, within(PREFIX, [*RULES, biases]), DROPPED, tables)


ORIGIN = Origin(
    key="eva02",
    version=1,
    summary="baaivision/EVA's EVA-02 and jihaonew/UTA: rotary positions, gated MLPs, as timm's Eva models",
    config=_config,
    convert=_convert,
    containers=(("module",), ("model",), ()),
)
