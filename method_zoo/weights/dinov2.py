"""Files of DINOv2's code: backbones alone, with or without registers, whose ViT-g has gated MLPs."""

from __future__ import annotations

from typing import Any

from method_zoo.weights.dino import RULES as DINO_RULES
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

RULES = [
    *DINO_RULES,
    (r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
    (r"(blocks\.\d+\.mlp\.)w12(\.weight|\.bias)", r"\1fc1\2"),
    (r"(blocks\.\d+\.mlp\.)w3(\.weight|\.bias)", r"\1fc2\2"),
    (r"(register_tokens)", r"\1"),
]
DROPPED = {"mask_token": "the mask token, which only pre-training shows"}


def _config(entry: Entry) -> dict[str, Any]:
    options = {"positions": "learned", "cls_token": True, "layer_scale": 1e-5, "init": "dino"}
    # The last option is of the class that resizes positions as DINOv2's code does, see ``RegisterViT``.
    return config(entry, **options, **{"interpolate_antialias": False, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, RULES, DROPPED)


ORIGIN = Origin(
    key="dinov2",
    version=1,
    summary="facebookresearch/dinov2: timm's names, layer scale, registers, SwiGLU as w12 and w3",
    config=_config,
    convert=_convert,
)
