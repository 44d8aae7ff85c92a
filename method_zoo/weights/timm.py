"""Files with the names of timm's own models, as timm's repositories on the Hugging Face hub hold them."""

from __future__ import annotations

import torch

from mimbench.registry import build_backbone
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Shapes, config, renamed

DROPPED = {r"(head|head\.fc|head_dist|fc|classifier)\.(weight|bias)": "the classifier"}
LAST_NORM = {r"(norm|fc_norm|head\.norm)\.(weight|bias)": "the entry says why the encoder has no last norm"}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    with torch.device("meta"):
        backbone = build_backbone(**config(entry))
    made = {ours: Made((backbone.timm_name(ours),)) for ours in backbone.state_dict()}
    used = {each.of[0] for each in made.values()}
    others = {name: shape for name, shape in shapes.items() if name not in used}
    dropped = DROPPED if entry.options.get("final_norm", True) else DROPPED | LAST_NORM
    return Conversion(made, renamed(others, [], dropped).dropped)


ORIGIN = Origin(
    key="timm",
    version=1,
    summary="timm's own names, as in its repositories on the hub",
    config=config,
    convert=_convert,
)
