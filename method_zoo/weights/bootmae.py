"""Files of BootMAE's code: BEiT's blocks without layer scale, fixed positions, two decoders beside them."""

from __future__ import annotations

from typing import Any

from method_zoo.weights import beit
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config

OPTIONS: dict[str, Any] = {
    "positions": "sincos_y_first",
    "qkv_bias": "query_value",
    "init": "mocov3",
}
DROPPED = {
    r"mask_token(_1)?": "hidden patches are left out, and the tokens are the decoders'",
    r"de_pos_embed": "the decoders' fixed positions",
    r"down(_1)?\.(weight|bias)": "the way to the decoders",
    r"decode_blocks(_1)?\.\d+\..*": "the decoders",
    r"decode_norm(_1)?\.(weight|bias)": "the decoders",
    r"lm_head(\.proj|_1)\.(weight|bias)": "the heads that predict pixels and features",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, **{**OPTIONS, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    return beit.conversion(shapes, _config(entry), DROPPED)


ORIGIN = Origin(
    key="bootmae",
    version=1,
    summary="LightDXY/BootMAE: BEiT's blocks, fixed sin-cos positions, two decoders",
    config=_config,
    convert=_convert,
    containers=(("model",), ()),
)
