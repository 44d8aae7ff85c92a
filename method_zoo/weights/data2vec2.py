"""Checkpoints of data2vec 2.0 in fairseq: the student, with its moving average as a dictionary inside."""

from __future__ import annotations

from typing import Any

from method_zoo.backbones.positions import sincos_positions
from method_zoo.weights.mae import BLOCK
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

IMAGE = r"modality_encoders\.IMAGE\."
POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"
RULES = [
    BLOCK,
    (rf"{IMAGE}extra_tokens", "cls_token"),
    (rf"{IMAGE}local_encoder\.(proj\.(?:weight|bias))", r"patch_embed.\1"),
    (rf"{IMAGE}context_encoder\.norm\.(weight|bias)", r"embed_norm.\1"),
]
DROPPED = {
    rf"{IMAGE}decoder\.(?:blocks\.\d+\.0|proj)\.(?:weight|bias)": "the decoder",
    r"_ema\.(?:modality_encoders\.IMAGE|blocks)\..+": "the moving average, whose outputs are the targets",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="sincos", cls_token=True, norm_order="post", final_norm=False, init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    side = entry.image_size // int(entry.backbone.rpartition("patch")[2])
    tables = {
        name: sincos_positions(shape[-1], (side, side)) for name, shape in shapes.items() if name == POSITIONS
    }
    return renamed(shapes, RULES, DROPPED, tables)


ORIGIN = Origin(
    key="data2vec2",
    version=1,
    summary="facebookresearch/fairseq: data2vec 2.0, norms behind the branches; the student, not its average",
    config=_config,
    convert=_convert,
    containers=(("model",),),
)
