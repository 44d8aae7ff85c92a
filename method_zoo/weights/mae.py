"""Files in the layout of MAE's code, which most forks of it kept: timm's names of 2021, decoder and all."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from method_zoo.backbones.positions import FIXED
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed

BLOCK = (
    r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))",
    r"\1",
)
RULES = [
    BLOCK,
    (r"(cls_token|patch_embed\.proj\.(?:weight|bias)|norm\.(?:weight|bias))", r"\1"),
]
DROPPED = {
    r"decoder_.*": "the decoder",
    r"mask_token": "hidden patches are left out, and the token is the decoder's",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, **{"positions": "sincos", "cls_token": True, "init": "mae", **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = _config(entry)
    if built["positions"] == "learned":
        return renamed(shapes, [*RULES, (r"(pos_embed)", r"\1")], DROPPED)
    width, rows = shapes["patch_embed.proj.weight"][0], shapes["pos_embed"][1] - 1
    side = round(rows**0.5)
    table = F.pad(FIXED[built["positions"]](width, (side, side)), (0, 0, 1, 0))
    return renamed(shapes, RULES, DROPPED, {"pos_embed": table})


ORIGIN = Origin(
    key="mae",
    version=1,
    summary="facebookresearch/mae and its forks: timm's names, fixed sin-cos positions, class token",
    config=_config,
    convert=_convert,
    containers=(("model",), ()),
)
