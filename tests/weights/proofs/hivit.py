"""HiViT's layout: against its encoder written anew, which gives the official predictions under a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, images_of, part, record, small

from ._pyramids import (
    State,
    block,
    block_shapes,
    decoded,
    filled,
    gathered,
    linear,
    merged,
    norm,
    offsets,
    randomised,
    shown,
)

Shapes = dict[str, tuple[int, ...]]


def encoded(
    state: State, images: Tensor, heads: int, kept: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The last block's tokens, and the cells before each merging, [B, n, side, side, D]."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    side = x.shape[-1] // 4
    x = torch.stack([x[:, :, i // side * 4 :, i % side * 4 :][:, :, :4, :4] for i in range(side**2)], dim=1)
    x = norm(state, "patch_embed.norm", x.permute(0, 1, 3, 4, 2))
    positions = state["absolute_pos_embed"].expand(len(x), -1, -1)
    if kept is not None:
        x, positions = gathered(x, kept), gathered(positions, kept)
    cells, entered = [], False
    for i in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        name = f"blocks.{i}"
        if f"{name}.reduction.weight" in state:
            cells.append(x)
            x = merged(state, name, x, 1e-6)
            continue
        if f"{name}.attn.qkv.weight" in state and not entered:
            x, entered = x[:, :, 0, 0] + positions, True
        table = state.get(f"{name}.attn.relative_position_bias_table")
        bias = None if table is None else table[offsets(side)].permute(2, 0, 1).expand(len(x), -1, -1, -1)
        if bias is not None and kept is not None:
            bias = torch.stack([each[:, k][:, :, k] for each, k in zip(bias, kept, strict=True)])
        x = block(state, name, x, heads, bias=bias)
    return x, cells


def of_record() -> tuple[Proof, Proof]:
    """The official run's images with its mask and without, its prediction having been found again."""
    run = record("hivit_mae", "")
    state, config, images = part(run, "model"), run.config, run.inputs["img"]
    mask = run.outputs["mask"]
    kept, n = shown(mask), mask.shape[1]
    x, cells = encoded(state, images, config["num_heads"], kept)
    joined = norm(state, "norm", torch.cat([*(cell.flatten(2) for cell in cells), x], dim=-1))
    y = filled(linear(state, "decoder_embed", joined), kept, state["mask_token"][0], n)
    predicted = decoded(state, y + state["decoder_pos_embed"], config["decoder_num_heads"])
    torch.testing.assert_close(predicted, run.outputs["pred"].double(), rtol=1e-5, atol=2e-6)
    sizes = {k: config[k] for k in ("embed_dim", "num_heads", "mlp_ratio", "stem_mlp_ratio")}
    sizes |= {"depth": config["depths"][2], "stem_depth": 2 * config["depths"][0]}
    entry = small("hivit@hivit_base", image_size=config["img_size"], options=sizes)
    said = "HiViT.forward_features of the official code, written anew"
    content = {"model": state}
    return (
        Proof(entry, content, images, None, x, said, mask=mask.bool()),
        Proof(entry, content, images, None, encoded(state, images, config["num_heads"])[0], said),
    )


def shapes(dim: int, heads: int, stem: int, depth: int, patches: int, scaled: bool = False) -> Shapes:
    """Names and shapes of an encoder of this layout; MLPs are twice as wide as their input.

    scaled: with layer scales, relative positions and their index.
    """
    width, i = dim // 4, 0
    found: Shapes = {
        "absolute_pos_embed": (1, patches, dim),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        **{f"patch_embed.{name}": (width,) for name in ("proj.bias", "norm.weight", "norm.bias")},
    }
    for stage in range(2):
        here = width * 2**stage
        for _ in range(stem):
            found |= block_shapes(f"blocks.{i}", here, 2 * here, attends=False)
            found |= {f"blocks.{i}.gamma_2": (here,)} if scaled else {}
            i += 1
        found |= {f"blocks.{i}.norm.{part}": (4 * here,) for part in ("weight", "bias")}
        found |= {f"blocks.{i}.reduction.weight": (2 * here, 4 * here)}
        i += 1
    for block_number in range(i, i + depth):
        name = f"blocks.{block_number}"
        found |= block_shapes(name, dim, 2 * dim)
        if scaled:
            found |= {f"{name}.gamma_{branch}": (dim,) for branch in (1, 2)}
            distances = (2 * round(patches**0.5) - 1) ** 2
            found |= {f"{name}.attn.relative_position_bias_table": (distances, heads)}
    return found


def drawn(wanted: Shapes) -> dict[str, Tensor]:
    return randomised({name: torch.empty(shape) for name, shape in wanted.items()}, fixed="(none)")


SIZES: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "stem_mlp_ratio": 2.0}


def whole_images() -> Proof:
    """Stages of three MLPs, positions that are not sin-cos, and the decoder's tensors of a released file."""
    state = drawn(
        shapes(32, 2, stem=3, depth=3, patches=9)
        | {"norm.weight": (224,), "norm.bias": (224,), "mask_token": (1, 1, 16)}
        | {"decoder_pos_embed": (1, 9, 16), "decoder_embed.weight": (16, 224)}
    )
    entry = small("hivit@hivit_base", image_size=48, options=SIZES | {"stem_depth": 3, "depth": 3})
    images = images_of(48)
    tokens, _ = encoded(state, images, 2)
    said = "HiViT.forward_features of the official code, written anew"
    return Proof(entry, {"model": state}, images, None, tokens, said)


PROOFS = {
    "masked": lambda: of_record()[0],
    "unmasked": lambda: of_record()[1],
    "whole images": whole_images,
}
