"""Files of ResNets: torchvision's names, alone or as the backbone of a model of OpenMixup."""

from __future__ import annotations

from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Shapes, config, renamed, within

NORM = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
RULES = [
    (rf"(conv1\.weight|bn1\.{NORM})", r"model.\1"),
    (
        rf"(layer[1-4]\.\d+\.(?:conv[123]\.weight|bn[123]\.{NORM}|downsample\.0\.weight|downsample\.1\.{NORM}))",
        r"model.\1",
    ),
]
DROPPED = {
    r"fc\.(weight|bias)": "the classifier",
    r"backbone\.mask_token": "hidden patches are no input of the encoder",
    r"neck\..*": "the layers that predict pixels",
    r"head\..*": "the loss",
}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    prefix = r"backbone\." if "backbone.conv1.weight" in shapes else ""
    return renamed(shapes, within(prefix, RULES), DROPPED)


ORIGIN = Origin(
    key="resnet",
    version=1,
    summary="ResNets by torchvision's names: SparK's, and A2MIM's within a model of OpenMixup",
    config=config,
    convert=_convert,
    containers=(("module",), ("state_dict",), ()),
)
