"""What the transformers library's vision transformers have in common, as it wrote them anew for the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mimbench.weights.origin import Conversion, Made, Rules, Shapes, renamed, within

LAYER = r"encoder\.layer\.(\d+)\."
QUERY = LAYER + r"attention\.attention\.query\.(weight|bias)"
SHARED: Rules = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (LAYER + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
]


def conversion(
    shapes: Shapes,
    prefix: str,
    rules: Rules,
    dropped: Mapping[str, str],
    tables: Mapping[str, Tensor] | None = None,
) -> Conversion:
    """What becomes of a file's tensors: queries, keys and values, three maps there, are one here.

    prefix: a regular expression of what stands before the encoder's names. rules: beside ``SHARED``, of names
    without the prefix. dropped, tables: as of ``renamed``, of whole names.
    """
    joined: dict[str, Made] = {}
    parts: set[str] = set()
    for name in shapes:
        match = re.fullmatch(prefix + QUERY, name)
        of = tuple(name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        if match and (match[2] == "weight" or of[1] in shapes):  # BEiT's keys have no bias
            joined[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = Made(of, _joined)
            parts |= set(of)
    rest = {name: shape for name, shape in shapes.items() if name not in parts}
    found = renamed(rest, within(prefix, [*SHARED, *rules]), dropped, tables)
    return Conversion({**joined, **found.made}, found.dropped, found.fresh, found.tables)


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)
