"""Files of CAPI's code: encoder, predictor and head of one network, names behind ``backbone.``."""

from __future__ import annotations

import re
from typing import Any

from method_zoo.backbones.rotary import Rotary
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

BLOCK = [
    (r"residual([12])\.norm\.weight", "norm{}.weight"),
    (r"residual1\.fn\.([qkv])_proj\.weight", "attn.{}.weight"),
    (r"residual1\.fn\.proj\.weight", "attn.proj.weight"),
    (r"residual2\.fn\.(fc[12])\.weight", "mlp.{}.weight"),
]
OF_BLOCK = r"residual[12]\.(?:norm|fn\.(?:[qkv]_proj|proj|fc[12]))\.weight"
RULES = [
    *((rf"encoder\.blocks\.(\d+)\.{theirs}", rf"blocks.\1.{ours}".format(r"\2")) for theirs, ours in BLOCK),
    (r"patch_embed\.(weight|bias)", r"patch_embed.\1"),
    (r"registers", "register_tokens"),
]
PREDICTOR = [
    *((rf"decoder\.blocks\.0\.{theirs}", f"summary.{ours}".format(r"\1")) for theirs, ours in BLOCK),
    (r"mask_token", "summary_token"),
]
PREFIX = r"backbone\."
FREQUENCIES = rf"{PREFIX}(?:encoder|decoder)\.blocks\.\d+\.residual1\.fn\.rope\.freqs"
HEADS = {
    r"head\.layer\.(?:weight|bias)": "the clusters",
    r"head\.last_layer\.weight_[gv]": "the layer that predicts clusters",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="rope", **{"registers": 16, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = _config(entry)
    # A fixed table in name a parameter: the code trains it at a rate of zero.
    frequencies = {name: shape for name, shape in shapes.items() if re.fullmatch(FREQUENCIES, name)}
    tables = {name: Rotary(shape[-1]).frequencies for name, shape in frequencies.items()}
    gone = {rf"{PREFIX}decoder\.blocks\.[1-9]\d*\.{OF_BLOCK}": "the predictor behind its first block"}
    if "cls_token" in built:
        return renamed(shapes, within(PREFIX, [*RULES, *PREDICTOR]), gone | HEADS, tables)
    gone = {
        rf"{PREFIX}decoder\.blocks\.\d+\.{OF_BLOCK}": "the predictor",
        rf"{PREFIX}mask_token": "the predictor's mask token",
    }
    return renamed(shapes, within(PREFIX, RULES), gone | HEADS, tables)


ORIGIN = Origin(
    key="capi",
    version=1,
    summary="facebookresearch/capi: rotary positions, registers, RMS norms, no biases; predictor beside it",
    config=_config,
    convert=_convert,
)
