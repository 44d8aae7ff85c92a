"""OpenMMLab's layout: the encoder written out over its names, in what each method puts beside it."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from tests.weights.plain import OPENMMLAB, Names, random_state, sincos, tokens
from tests.weights.proof import Proof, figure, images_of, part, small

BARE = Names(**{part: name.removeprefix("backbone.") for part, name in asdict(OPENMMLAB).items() if name})
DECODER = {
    "neck.mask_token": (1, 1, 32),
    "neck.decoder_pos_embed": (1, 17, 32),
    "neck.decoder_blocks.0.attn.qkv.weight": (96, 32),
    "neck.decoder_pred.bias": (192,),
}
FUSION = {f"backbone.proj_layers.{i}.{kind}": (48,) for i in range(2) for kind in ("weight", "bias")}
FUSION |= {"backbone.proj_weights": (3, 1, 1, 1)}
HISTOGRAMS = {
    "backbone.mask_token": (1, 1, 48),
    "neck.fc.weight": (108, 48),
    "target_generator.weight_x": (3, 1, 3, 3),
    "target_generator.gaussian_kernel": (16, 16),
}


def cmae() -> Proof:
    """An official CMAE model, its average and both decoders too."""
    run = figure("cmae", "default_s20")
    online = run.config["backbone"]["online"]
    arch, patch = online["arch"], online["patch_size"]
    width, side = arch["embed_dims"], online["img_size"] // patch
    table = sincos(width, side, y_first=True)
    state = part(run, "model") | {
        "backbone.pos_embed": table,
        "target_backbone.pos_embed": table,
        "pixel_decoder.decoder_pos_embed": torch.randn(3),
        "feature_decoder.decoder_pos_embed": torch.randn(3),
    }
    options = {"embed_dim": width, "depth": arch["num_layers"], "num_heads": arch["num_heads"]}
    options["mlp_ratio"] = arch["feedforward_channels"] / width
    return _proof("cmae@vit_base", state, OPENMMLAB, patch, online["img_size"], options)


def random(name: str, more: dict[str, tuple[int, ...]], names: Names = OPENMMLAB) -> Proof:
    """more: shapes of what stands beside the encoder, by name."""
    state = random_state(48, 3, patch=8, side=4, names=names)
    entry = small(name)
    if entry.options.get("positions") == "learned":
        state[names.positions] = 0.2 * torch.randn(1, 17, 48)
    else:
        state[names.positions] = sincos(48, 4, y_first=True)
    state |= {official: torch.randn(shape) for official, shape in more.items()}
    return _proof(name, state, names, 8, 32, {"embed_dim": 48, "depth": 3, "num_heads": 3})


def _proof(
    name: str, state: dict[str, Tensor], names: Names, patch: int, size: int, options: dict[str, float]
) -> Proof:
    images = images_of(size)
    found = tokens(state, images, int(options["num_heads"]), names)
    entry = small(name, backbone=f"vit_base_patch{patch}", image_size=size, options=options)
    content = {"meta": {"epoch": 300}, "state_dict": state}
    return Proof(entry, content, images, found[:, 0], found[:, 1:], "the encoder written out")


PROOFS = {
    "cmae": cmae,
    "cmae, its backbone alone": lambda: random("cmae@vit_base", {}, BARE),
    "mae": lambda: random("mae@vit_base-mmpretrain-300ep", DECODER),
    "colormae": lambda: random("colormae@vit_base", DECODER),
    "mff": lambda: random("mff@vit_base", DECODER | FUSION),
    "maskfeat": lambda: random("maskfeat@vit_base-mmpretrain-300ep", HISTOGRAMS),
}
