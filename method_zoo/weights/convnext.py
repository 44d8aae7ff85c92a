"""Files in the layout of ConvNeXt's and ConvNeXt V2's code: SparK's and FCMAE's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimbench.registry import build_backbone
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Shapes, config, renamed

ENDS = r"\.(weight|bias)"
RULES = [
    (rf"downsample_layers\.0\.([01]){ENDS}", r"model.stem.\1.\2"),
    (rf"downsample_layers\.([123])\.([01]){ENDS}", r"model.stages.\1.downsample.\2.\3"),
    (rf"stages\.(\d)\.(\d+)\.dwconv{ENDS}", r"model.stages.\1.blocks.\2.conv_dw.\3"),
    (rf"stages\.(\d)\.(\d+)\.norm{ENDS}", r"model.stages.\1.blocks.\2.norm.\3"),
    (rf"stages\.(\d)\.(\d+)\.pwconv([12]){ENDS}", r"model.stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"stages\.(\d)\.(\d+)\.gamma", r"model.stages.\1.blocks.\2.gamma"),
    (r"stages\.(\d)\.(\d+)\.grn\.gamma", r"model.stages.\1.blocks.\2.mlp.grn.weight"),
    (r"stages\.(\d)\.(\d+)\.grn\.beta", r"model.stages.\1.blocks.\2.mlp.grn.bias"),
]
DROPPED = {
    r"norm\.(weight|bias)": "it is applied to pooled features only, which pre-training has none of",
    r"head\.(weight|bias)": "the classifier",
    r"mask_token": "hidden patches are no input of the encoder",
    r"(proj|pred)\.(weight|bias)": "the layers around the decoder",
    r"decoder\..*": "the decoder",
}


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, final_norm=False)


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    found = renamed(shapes, RULES, DROPPED)
    with torch.device("meta"):
        wanted = {
            name: tensor.shape for name, tensor in build_backbone(**_config(entry)).state_dict().items()
        }
    made = {ours: _shaped(each, shapes, wanted.get(ours)) for ours, each in found.made.items()}
    return replace(found, made=made)


def _shaped(made: Made, shapes: Shapes, wanted: torch.Size | None) -> Made:
    """With dimensions of size 1 put in or left out: linear as 1 x 1 convolution, GRN's [1, 1, 1, C]."""
    there = shapes[made.of[0]]
    if wanted is None or there == wanted or [n for n in there if n > 1] != [n for n in wanted if n > 1]:
        return made

    def by(tensor: Tensor) -> Tensor:
        return tensor.reshape(wanted)

    return Made(made.of, by)


ORIGIN = Origin(
    key="convnext",
    version=1,
    summary="facebookresearch/ConvNeXt and ConvNeXt-V2: SparK's and FCMAE's encoders",
    config=_config,
    convert=_convert,
    containers=(("model",), ("module",), ()),
)
