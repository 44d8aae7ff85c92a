"""Files in the layout of MAE's code, which most forks of it kept: timm's names of 2021, decoder and all.

The encoder is the same in all of them; what a fork put beside it is told by the method of the entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones.positions import FIXED
from mimbench.registry import build_backbone
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Shapes, config, renamed

BLOCK = (
    r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))",
    r"\1",
)
EMBEDDING = (r"(cls_token|patch_embed\.proj\.(?:weight|bias))", r"\1")
RULES = [BLOCK, EMBEDDING, (r"(norm\.(?:weight|bias))", r"\1")]
DROPPED = {
    r"decoder_.*": "the decoder",
    r"mask_token": "hidden patches are left out, and the token is the decoder's",
}
# What may be before every name: DistributedDataParallel's, then that of a part of a model (MAE-Lite).
WRAPPERS = re.compile(r"(?:module\.)?(?:model\.)?")


@dataclass(frozen=True)
class Fork:
    """What the files of a fork have beside MAE's names.

    norm: their name of the encoder's final norm. dropped: patterns of what the encoder has no use for, and
    why, beside ``DROPPED``.
    """

    norm: str = "norm"
    dropped: Mapping[str, str] = field(default_factory=dict)


HEAD = r"\.\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
FORKS = {
    "crossmae": Fork(
        dropped={
            r"dec_norms\.\d+\.(?:weight|bias)": "norms of what the decoder's blocks see",
            r"wfm\.linear\.weight": "weighs the encoder's blocks for the decoder's",
        }
    ),
    "deepmim": Fork(dropped={r"mask_token[1-4]": "the tokens of the four decoders"}),
    "droppos": Fork(dropped={r"mask_pos_token": "stands for dropped positions, in pre-training only"}),
    "localmim": Fork(
        norm="norm.3",  # of the last block, which the last decoder sees
        dropped={
            r"norm\.[0-2]\.(?:weight|bias)": "norms of earlier blocks for their decoders",
            r"decoder\.[0-3]\..*": "the decoders of four blocks",
            r"hog_enc\.[0-3]\.conv\.weight": "the operator that computes the targets",
        },
    ),
    "lut": Fork(
        dropped={
            rf"head{HEAD}": "the projection head",
            rf"predictor{HEAD}": "the head that predicts another view",
        }
    ),
    "maskalign": Fork(
        dropped={
            r"distill_heads\..*": "adaptors to the teacher's width",
            r"distill_weights": "weighs the encoder's blocks for the teacher's",
            r"(?:clip|dino)_model\..*": "the teacher, as its own authors released it",
        }
    ),
    "siameseim": Fork(
        dropped={
            r"mm_.*": "the moving average, which is not what the authors evaluate",
            r"(?:projector|predictor)_decoder_blocks\..*": "the heads that predict the other view",
            r"student_norm\.(?:weight|bias)": "a norm of the heads' predictions",
        }
    ),
    "supmae": Fork(dropped={rf"cls_head{HEAD}": "the classifier of pre-training"}),
}


def fixed_positions(built: Mapping[str, Any]) -> Tensor:
    """The table that the encoder of a configuration adds, [T, D], a class token's row of zeros first."""
    with torch.device("meta"):
        backbone = build_backbone(**built)
    table = FIXED[built["positions"]](backbone.embed_dim, backbone.grid)
    return F.pad(table, (0, 0, backbone.prefix, 0))


def unwrapped(shapes: Shapes, convert: Callable[[Shapes], Conversion]) -> Conversion:
    """``convert``, which knows bare names, for a file that may have ``WRAPPERS`` before them."""
    theirs = {WRAPPERS.sub("", name, count=1): name for name in shapes}
    if len(theirs) < len(shapes):  # two of one bare name: one of them is unexpected, and said to be
        return convert(shapes)
    bare = convert({name: shapes[official] for name, official in theirs.items()})
    prefix = max((official.removesuffix(name) for name, official in theirs.items()), key=len, default="")

    def official(name: str) -> str:
        return theirs.get(name, prefix + name)

    return Conversion(
        {ours: Made(tuple(map(official, made.of)), made.by) for ours, made in bare.made.items()},
        {official(name): why for name, why in bare.dropped.items()},
        bare.fresh,
        {official(name): table for name, table in bare.tables.items()},
    )


def _config(entry: Entry) -> dict[str, Any]:
    return config(entry, positions="sincos", cls_token=True, init="mae")


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built, fork = _config(entry), FORKS.get(entry.method, Fork())
    rules = [BLOCK, EMBEDDING, (rf"{re.escape(fork.norm)}\.(weight|bias)", r"norm.\1")]
    dropped = {**DROPPED, **fork.dropped}
    if built["positions"] == "learned":
        rules.append((r"(pos_embed)", r"\1"))
        return unwrapped(shapes, lambda bare: renamed(bare, rules, dropped))
    tables = {"pos_embed": fixed_positions(built)}
    return unwrapped(shapes, lambda bare: renamed(bare, rules, dropped, tables))


ORIGIN = Origin(
    key="mae",
    version=1,
    summary="facebookresearch/mae and its forks: timm's names, fixed sin-cos positions, class token",
    config=_config,
    convert=_convert,
    containers=(("model",), ("state_dict",), ()),
)
