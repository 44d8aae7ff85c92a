"""Files of MaskFeat's code for images, SlowFast's: its MViT without pooling, which is a plain ViT."""

from __future__ import annotations

from typing import Any

from method_zoo.weights import beit
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config

OPTIONS: dict[str, Any] = {
    "positions": "learned",
    "final_norm": False,
    "init": "beit",
}
DROPPED = {
    # Files may hold it from before the code deleted it; a released one is reported to hold NaN there.
    r"norm\.(weight|bias)": "a norm that pre-training left unused",
    r"pred_head\.(transforms|projections)\.0\..*": "the head that predicts gradients' histograms",
    r"hogs\.0\.(weight_x|weight_y|gkern)": "the filters of the targets",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, **{**OPTIONS, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return beit.conversion(shapes, _config(entry), DROPPED)


ORIGIN = Origin(
    key="maskfeat",
    version=1,
    summary="MaskFeat in facebookresearch/SlowFast: a plain ViT with learned positions, no final norm",
    config=_config,
    convert=_convert,
    containers=(("model_state",),),
)
