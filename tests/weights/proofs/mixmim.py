"""MixMIM's layout: against its encoder written anew, which gives the official predictions of mixed images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.weights.entry import Entry
from tests.weights.proof import Proof, images_of, part, record, small

from ._pyramids import State, block, block_shapes, decoded, linear, merged, norm, offsets, randomised
from .ijepa import sincos

EPS = 1e-5
SAID = "MixMIM of the official code, written anew"


def windowed(x: Tensor, side: int) -> Tensor:
    """[B, H, W, ...] -> [windows of all images, side², ...]"""
    rows = [
        x[:, i : i + side, j : j + side]
        for i in range(0, x.shape[1], side)
        for j in range(0, x.shape[2], side)
    ]
    return torch.stack(rows, dim=1).flatten(2, 3).flatten(0, 1)


def put_back(windows: Tensor, size: int, side: int) -> Tensor:
    """``windowed`` undone, [B, size, size, D]."""
    n = (size // side) ** 2
    parts = windows.unflatten(0, (-1, n)).unflatten(2, (side, side))
    x = parts.new_zeros(len(parts), size, size, parts.shape[-1])
    for k in range(n):
        i, j = k // (size // side) * side, k % (size // side) * side
        x[:, i : i + side, j : j + side] = parts[:, k]
    return x


def encoded(state: State, images: Tensor, config: dict, mask: Tensor | None = None) -> Tensor:
    """Tokens behind the last norm. mask: [B, N], 1 where the partner in the reversed batch shows through."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = norm(state, "patch_embed.norm", x.permute(0, 2, 3, 1), EPS)

    def spread(size: int) -> Tensor:
        side = round(mask.shape[1] ** 0.5)
        grid = mask.double().view(-1, side, side).expand(len(images), -1, -1)
        return grid.repeat_interleave(size // side, 1).repeat_interleave(size // side, 2)

    if mask is not None:
        shows = spread(x.shape[1]).unsqueeze(-1)
        x = x * (1 - shows) + x.flip(0) * shows
    x = x + state["absolute_pos_embed"].view(1, *x.shape[1:])
    for stage, depth in enumerate(config["depths"]):
        size = x.shape[1]
        side = min(config["window_size"][stage], size)
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            table = state[f"{name}.attn.relative_position_bias_table"]
            bias = table[offsets(side)].permute(2, 0, 1)
            if mask is not None:
                of = windowed(spread(size), side)
                apart = (of.unsqueeze(2) != of.unsqueeze(1)).unsqueeze(1)
                bias = bias.masked_fill(apart, -torch.inf)
            # All but attention is the same in and out of windows.
            y = block(state, name, windowed(x, side), config["num_heads"][stage], EPS, bias)
            x = put_back(y, size, side)
        if stage < 3:
            x = merged(state, f"layers.{stage}.downsample", x, EPS)
    return norm(state, "norm", x.flatten(1, 2), EPS)


def entry_of(config: dict) -> Entry:
    sizes = {
        "embed_dim": 8 * config["embed_dim"],
        "num_heads": config["num_heads"],
        "depths": config["depths"],
        "windows": config["window_size"],
        "mlp_ratio": config["mlp_ratio"],
    }
    return small("mixmae@mixmim_base", image_size=config["img_size"], options=sizes)


def of_record() -> Proof:
    """The official run's images, each by itself, its prediction of mixed ones having been found again."""
    run = record("mixmim", "")
    state, config, images = part(run, "model"), run.config, run.inputs["img"]
    mask = run.outputs["out1"].double()  # [1, N, 1]
    x = linear(state, "decoder_embed", encoded(state, images, config, mask[..., 0]))
    token = state["mask_token"]
    x = torch.cat([x * (1 - mask) + token * mask, x * mask + token * (1 - mask)])
    predicted = decoded(state, x + state["decoder_pos_embed"], config["decoder_num_heads"], EPS)
    torch.testing.assert_close(predicted, run.outputs["out0"].double(), rtol=1e-5, atol=2e-6)
    return Proof(entry_of(config), {"model": state}, images, None, encoded(state, images, config), SAID)


def proof(config: dict) -> Proof:
    """Weights drawn anew, with all names of a released file."""
    dim, fixed = config["embed_dim"], {}
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (dim, 3, 4, 4),
        "mask_token": (1, 1, 16),
        "decoder_embed.weight": (16, 8 * dim),
        "decoder_blocks.0.norm1.bias": (16,),
        **{f"patch_embed.{name}": (dim,) for name in ("proj.bias", "norm.weight", "norm.bias")},
        **{f"norm.{name}": (8 * dim,) for name in ("weight", "bias")},
    }
    for stage, depth in enumerate(config["depths"]):
        width, size = dim * 2**stage, config["img_size"] // 4 >> stage
        side = min(config["window_size"][stage], size)
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            shapes |= block_shapes(name, width, config["mlp_ratio"] * width)
            distances = (2 * side - 1) ** 2
            shapes[f"{name}.attn.relative_position_bias_table"] = (distances, config["num_heads"][stage])
            fixed[f"{name}.attn.relative_position_index"] = offsets(side)
        if stage < 3:
            name = f"layers.{stage}.downsample"
            shapes |= {f"{name}.norm.{part}": (4 * width,) for part in ("weight", "bias")}
            shapes |= {f"{name}.reduction.weight": (2 * width, 4 * width)}
    state = randomised({name: torch.empty(shape) for name, shape in shapes.items()})
    state |= fixed | {"absolute_pos_embed": sincos(dim, config["img_size"] // 4)}
    images = images_of(config["img_size"])
    return Proof(entry_of(config), {"model": state}, images, None, encoded(state, images, config), SAID)


SMALL = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": [4, 4, 4, 2],
    "mlp_ratio": 2,
    "img_size": 64,
}
DEEPER = {**SMALL, "depths": [1, 2, 3, 2], "window_size": [7, 7, 14, 7], "img_size": 224}
PROOFS = {
    "official run": of_record,
    "whole images": lambda: proof(SMALL),
    "windows of released files": lambda: proof(DEEPER),
}
