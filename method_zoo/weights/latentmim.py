"""Files of LatentMIM's code: encoder, moving average and decoder, patches embedded by a linear map."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from method_zoo.weights.mae import BLOCK, fixed_positions, unwrapped
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Shapes, config, renamed

RULES = [
    (rf"encoder\.{BLOCK[0]}", BLOCK[1]),
    (r"encoder\.(cls_token|norm\.(?:weight|bias))", r"\1"),
    (r"encoder\.embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
]
DROPPED = {
    r"encoder\.head\.(?:linear|norm)\d+\.(?:weight|bias)": "the projector of the encoder",
    r"target_encoder\..*": "the moving average, which is not what the authors evaluate",
    r"decoder\..*": "the decoder",
}
POSITIONS = "encoder.pos_embed.pos_embeds"


def _as_convolution(weight: Tensor) -> Tensor:
    """[D, P·P·3], a patch's numbers in the order row, column, channel -> [D, 3, P, P]."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="stretched", cls_token=True, init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = _config(entry)
    learned = built["positions"] == "learned"
    tables = {} if learned else {POSITIONS: fixed_positions(built)}
    rules = [*RULES, (POSITIONS.replace(".", r"\."), "pos_embed")] if learned else RULES

    def convert(bare: Shapes) -> Conversion:
        found = renamed(bare, rules, DROPPED, tables)
        made = dict(found.made)
        for name, by in (("patch_embed.proj.weight", _as_convolution), ("pos_embed", _with_batch)):
            if name in made:
                made[name] = Made(made[name].of, by)
        return Conversion(made, found.dropped, found.fresh, found.tables)

    return unwrapped(shapes, convert)


def _with_batch(table: Tensor) -> Tensor:
    """[T, D] -> [1, T, D]"""
    return table.unsqueeze(0)


ORIGIN = Origin(
    key="latentmim",
    version=1,
    summary="yibingwei-1/LatentMIM: encoder, moving average and decoder under state_dict",
    config=_config,
    convert=_convert,
    containers=(("state_dict",), ()),
)
