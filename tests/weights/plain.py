"""A vision transformer written out over a state dict's names: a reference that shares no code of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Names:
    """What official code calls the parts; ``{}`` is a block's number. norm, cls: "" where there is none.

    split: of queries, keys and values, where they are three maps; qkv is "" then.
    """

    embed: str = "patch_embed.proj"
    cls: str = "cls_token"
    positions: str = "pos_embed"
    norm1: str = "blocks.{}.norm1"
    qkv: str = "blocks.{}.attn.qkv"
    proj: str = "blocks.{}.attn.proj"
    norm2: str = "blocks.{}.norm2"
    fc1: str = "blocks.{}.mlp.fc1"
    fc2: str = "blocks.{}.mlp.fc2"
    norm: str = "norm"
    split: tuple[str, ...] = ()


TIMM = Names()
OPENMMLAB = Names(
    embed="backbone.patch_embed.projection",
    cls="backbone.cls_token",
    positions="backbone.pos_embed",
    norm1="backbone.layers.{}.ln1",
    qkv="backbone.layers.{}.attn.qkv",
    proj="backbone.layers.{}.attn.proj",
    norm2="backbone.layers.{}.ln2",
    fc1="backbone.layers.{}.ffn.layers.0.0",
    fc2="backbone.layers.{}.ffn.layers.1",
    norm="backbone.ln1",
)


def tokens(
    state: Mapping[str, Tensor],
    images: Tensor,
    heads: int,
    names: Names = TIMM,
    embedded: Tensor | None = None,
) -> Tensor:
    """All tokens of whole images, [B, 1 + N, D], layer norms with an epsilon of 1e-6.

    embedded: the patches [B, N, D], where they are not embedded by a convolution.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"].double() + state[f"{name}.bias"].double()

    if embedded is None:
        kernel = state[f"{names.embed}.weight"].double()
        x = F.conv2d(images, kernel, state[f"{names.embed}.bias"].double(), stride=kernel.shape[-1])
        x = x.flatten(2).transpose(1, 2)
    else:
        x = embedded
    if names.cls:
        x = torch.cat([state[names.cls].double().expand(len(x), 1, -1), x], dim=1)
    x = x + state[names.positions].double()
    i = 0
    while f"{names.norm1.format(i)}.weight" in state:
        y = norm(names.norm1.format(i), x)
        parts = [linear(name.format(i), y) for name in names.split]
        if names.qkv:
            parts += linear(names.qkv.format(i), y).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        x = x + linear(names.proj.format(i), (weights @ value).transpose(1, 2).flatten(2))
        hidden = linear(names.fc1.format(i), norm(names.norm2.format(i), x))
        x = x + linear(names.fc2.format(i), 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
        i += 1
    return norm(names.norm, x) if names.norm else x


def sincos(width: int, side: int, step: float = 1.0, y_first: bool = False) -> Tensor:
    """Positions [1, 1 + side², width] as official files hold them, float32: a row of zeros, then row by row.

    step: between neighbours.
    """
    rows = [[0.0] * width]
    for y in range(side):
        for x in range(side):
            row = []
            for place in (y, x) if y_first else (x, y):
                angles = [place * step / 10000 ** (k / (width // 4)) for k in range(width // 4)]
                row += [*map(math.sin, angles), *map(math.cos, angles)]
            rows.append(row)
    return torch.tensor(rows)[None]


def random_state(
    width: int, depth: int, patch: int, side: int, mlp: int = 4, names: Names = TIMM, seed: int = 0
) -> dict[str, Tensor]:
    """A state dict of random numbers, norms, biases and tokens too; positions are ``sincos``."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {names.positions: sincos(width, side)}

    def draw(name: str, *shape: int, mean: float = 0.0) -> None:
        state[name] = mean + 0.2 * torch.randn(*shape, generator=generator)

    draw(f"{names.embed}.weight", width, 3, patch, patch)
    draw(f"{names.embed}.bias", width)
    if names.cls:
        draw(names.cls, 1, 1, width)
    for i in range(depth):
        for name in (names.norm1, names.norm2):
            draw(f"{name.format(i)}.weight", width, mean=1.0)
            draw(f"{name.format(i)}.bias", width)
        layers = {names.proj: (1, 1), names.fc1: (mlp, 1), names.fc2: (1, mlp)}
        layers |= dict.fromkeys(names.split, (1, 1)) or {names.qkv: (3, 1)}
        for name, (out, inner) in layers.items():
            draw(f"{name.format(i)}.weight", out * width, inner * width)
            draw(f"{name.format(i)}.bias", out * width)
    if names.norm:
        draw(f"{names.norm}.weight", width, mean=1.0)
        draw(f"{names.norm}.bias", width)
    return state
