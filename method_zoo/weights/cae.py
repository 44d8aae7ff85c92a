"""Files of CAE's code: BEiT's blocks with fixed positions in the encoder, which one of several parts is."""

from __future__ import annotations

from typing import Any

from method_zoo.weights import beit
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config

OPTIONS: dict[str, Any] = {
    "positions": "sincos_y_first",
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
    "init": "mae",
}
DROPPED = {
    r"mask_token": "hidden patches are left out, and the token is the regressor's",
    r"rd_pos_embed": "the regressor's fixed positions",
    r"regresser\..*": "the regressor of hidden patches",
    r"encoder_to_regresser(_norm)?\.(weight|bias)": "the way to a regressor of another width",
    r"decoder\..*": "the decoder",
    # "teacher": its former name, by which the probes of this code still leave it out.
    r"(alignment_encoder|teacher)\..*": "the copy of the encoder that makes the targets",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, **{**OPTIONS, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return beit.conversion(shapes, _config(entry), DROPPED, "encoder.")


ORIGIN = Origin(
    key="cae",
    version=1,
    summary="Atten4Vis/CAE: BEiT's blocks, fixed sin-cos positions; regressor and decoder beside them",
    config=_config,
    convert=_convert,
    containers=(("model",), ()),
)
