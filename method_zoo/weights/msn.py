"""Checkpoints of MSN's code: the encoder and its moving average, the target encoder, each with a head."""

from __future__ import annotations

from typing import Any

from method_zoo.weights.dino import RULES
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

PREFIX = r"(?:module\.)?"  # of DistributedDataParallel
DROPPED = {
    rf"{PREFIX}fc\.(?:fc[123]|bn[12])\."
    r"(?:weight|bias|running_mean|running_var|num_batches_tracked)": "the projection head",
}


def _config(entry: Entry) -> dict[str, Any]:
    resized = {
        "interpolate_offset": 0.0,
        "interpolate_antialias": False,
    }  # as in the code, see ``RegisterViT``
    return config(entry, positions="learned", cls_token=True, init="dino", **resized)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return renamed(shapes, within(PREFIX, RULES), DROPPED)


ORIGIN = Origin(
    key="msn",
    version=1,
    summary="facebookresearch/msn: timm's names, learned positions; the target encoder without its head",
    config=_config,
    convert=_convert,
    containers=(("target_encoder",),),
)
