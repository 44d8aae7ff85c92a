"""Files in BEiT's layout in which the encoder is a part of a model: SimMIM, MFM, feature distillation."""

from __future__ import annotations

from method_zoo.weights import beit
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes

# What that part is called; by the last, once saved from within DistributedDataParallel.
PARTS = ("encoder.", "student.", "module.student.")
DROPPED = {
    r"decoder\.0\.(weight|bias)": "the head that predicts pixels or features",
    r"(module\.)?distill_head\.(weight|bias)": "the head that predicts features",
    r"feature_model\..*": "the teacher, as its own authors released it",
}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    # Where none of them is there, all that it holds is said to be unexpected.
    prefix = next((part for part in PARTS if f"{part}cls_token" in shapes), PARTS[0])
    return beit.conversion(shapes, beit.ORIGIN.config(entry), DROPPED, prefix)


ORIGIN = Origin(
    key="simmim",
    version=1,
    summary="microsoft/SimMIM's ViT and what is built on its code: BEiT's encoder within a model",
    config=beit.ORIGIN.config,
    convert=_convert,
    containers=(("model",), ("state_dict",), ()),
)
