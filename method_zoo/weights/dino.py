"""Files in the layout of DINO's code, which iBOT, AttMask and others kept: timm's names, learned positions.

A file of the backbone alone has them bare (iBOT's under ``state_dict``); a full checkpoint has both networks,
the teacher's under ``teacher``, with ``backbone.`` before and the head beside them.
"""

from __future__ import annotations

from typing import Any

from method_zoo.weights.mae import RULES as MAE_RULES
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

POSITIONS = (r"(pos_embed)", r"\1")
RULES = [*MAE_RULES, POSITIONS]
# DistributedDataParallel puts "module." before the student's names.
PREFIX = r"(?:module\.)?(?:backbone\.)?"
DROPPED = {
    rf"{PREFIX}masked_embed": "iBOT's mask token, which only pre-training shows",
    r"(?:module\.)?head\.mlp\.\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked)": (
        "the projection head"
    ),
    r"(?:module\.)?head\.last_layer2?\.weight(?:_g|_v)?": "the prototypes of the projection head",
}


def _config(entry: Entry) -> dict[str, Any]:
    # The last option is of the class that resizes positions as DINO's code does, see ``RegisterViT``.
    return config(entry, positions="learned", cls_token=True, init="dino", interpolate_antialias=False)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, within(PREFIX, RULES), DROPPED)


ORIGIN = Origin(
    key="dino",
    version=1,
    summary="facebookresearch/dino, bytedance/ibot and gkakogeorgiou/attmask: timm's names",
    config=_config,
    convert=_convert,
    containers=(("teacher",), ("state_dict",), ()),
)
