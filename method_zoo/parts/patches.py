"""Images as patches, and choosing some of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int, order: Literal["pixel", "channel"] = "pixel") -> Tensor:
    """Cut images [B, C, H, W] into patches [B, N, C·p·p] in raster order.

    order: how a patch's numbers lie: "pixel" is (p, p, C) as in MAE's targets, "channel" is (C, p, p) as
    in a convolution's kernel and in pixel shuffle.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    cut = cut.permute((0, 2, 4, 3, 5, 1) if order == "pixel" else (0, 2, 4, 1, 3, 5))
    return cut.reshape(batch, rows * columns, -1)


def unpatchify(
    patches: Tensor, grid: tuple[int, int], order: Literal["pixel", "channel"] = "pixel"
) -> Tensor:
    """Images [B, 3, H, W] of patches [B, N, 3·p·p] on ``grid``: ``patchify`` undone."""
    size = math.isqrt(patches.shape[-1] // 3)
    inner = (size, size, 3) if order == "pixel" else (3, size, size)
    tiles = patches.reshape(len(patches), *grid, *inner)
    tiles = tiles.permute((0, 5, 1, 3, 2, 4) if order == "pixel" else (0, 3, 1, 4, 2, 5))
    return tiles.reshape(len(patches), 3, grid[0] * size, grid[1] * size)


def where(chosen: Tensor) -> Tensor:
    """Raster indices of the chosen patches, int64 [B, n]. chosen: bool [B, N], equally many in each row."""
    counts = chosen.sum(1)
    if bool((counts != counts[0]).any()):
        raise ValueError(
            "a mask under which patches are dropped hides equally many in each image; "
            f"this one chooses between {int(counts.min())} and {int(counts.max())}"
        )
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def take(patches: Tensor, index: Tensor) -> Tensor:
    """The patches at ``index`` [B, n] out of [B, N, D]: [B, n, D]."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def joined(cls: Tensor | None, patches: Tensor) -> Tensor:
    """A backbone's tokens as one sequence, class token [B, D] first where there is one: [B, T, D]."""
    return patches if cls is None else torch.cat([cls.unsqueeze(1), patches], dim=1)
