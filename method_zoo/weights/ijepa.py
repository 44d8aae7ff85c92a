"""Checkpoints of I-JEPA's code: context encoder, predictor and target encoder beside each other."""

from __future__ import annotations

import re
from typing import Any

from method_zoo.backbones.positions import sincos_positions
from method_zoo.weights.mae import RULES
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

PREFIX = r"(?:module\.)?"  # of DistributedDataParallel, around all three networks


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="sincos", cls_token=False, init="ijepa")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    side = entry.image_size // int(entry.backbone.rpartition("patch")[2])
    tables = {
        name: sincos_positions(shape[-1], (side, side))
        for name, shape in shapes.items()
        if re.fullmatch(rf"{PREFIX}pos_embed", name)
    }
    return renamed(shapes, within(PREFIX, RULES), {}, tables)


ORIGIN = Origin(
    key="ijepa",
    version=1,
    summary="facebookresearch/ijepa: timm's names, sin-cos positions, no class token; the target encoder",
    config=_config,
    convert=_convert,
    containers=(("target_encoder",),),
)
