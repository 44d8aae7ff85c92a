"""Images as patches, and choosing some of them."""

from __future__ import annotations

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
