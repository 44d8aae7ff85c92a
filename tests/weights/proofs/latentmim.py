"""LatentMIM's layout: the encoder written out over official runs' names, fixed and learned positions."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.weights.plain import Names, sincos, tokens
from tests.weights.proof import Proof, figure, images_of, part, small

NAMES = Names(
    cls="encoder.cls_token",
    positions="encoder.pos_embed.pos_embeds",
    norm1="encoder.blocks.{}.norm1",
    qkv="encoder.blocks.{}.attn.qkv",
    proj="encoder.blocks.{}.attn.proj",
    norm2="encoder.blocks.{}.norm2",
    fc1="encoder.blocks.{}.mlp.fc1",
    fc2="encoder.blocks.{}.mlp.fc2",
    norm="encoder.norm",
)


def _embedded(state: dict[str, Tensor], images: Tensor, side: int) -> Tensor:
    """A linear map of each patch's numbers, row by row, the three channels of a pixel beside each other."""
    patches = [
        image[:, y : y + side, x : x + side].permute(1, 2, 0).flatten()
        for image in images
        for y in range(0, image.shape[1], side)
        for x in range(0, image.shape[2], side)
    ]
    weight, bias = (state[f"encoder.embed.proj.{name}"] for name in ("weight", "bias"))
    return (torch.stack(patches) @ weight.T + bias).unflatten(0, (len(images), -1))


def proof(case: str, prefix: str) -> Proof:
    run = figure("latentmim", case)
    config, state = run.config, part(run, "model")
    side, width = config["grid_size"], config["embed_dim"]
    if fixed := bool(config["freeze_pe"]):
        table = sincos(width, side, step=side / (side - 1))[0]
        state |= {f"{network}.pos_embed.pos_embeds": table for network in ("encoder", "target_encoder")}
        state["decoder.pos_embed.pos_embeds"] = torch.randn(3)
    images = images_of(side * config["patch_size"])
    embedded = _embedded(state, images, config["patch_size"])
    found = tokens(state, images, config["num_heads"], NAMES, embedded)
    options = {size: config[size] for size in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    entry = small(
        "latentmim@vit_base",
        backbone=f"vit_base_patch{config['patch_size']}",
        image_size=images.shape[-1],
        options=options if fixed else options | {"positions": "learned"},
    )
    content = {"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 800}
    return Proof(entry, content, images, found[:, 0], found[:, 1:], "the encoder written out")


PROOFS = {
    "fixed positions, as saved by DDP": lambda: proof("normL2_s20", "module."),
    "learned positions": lambda: proof("default_s20", ""),
}
